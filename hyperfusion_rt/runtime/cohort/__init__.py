"""A whole cohort: what is kept of a run, its parts, its executors."""

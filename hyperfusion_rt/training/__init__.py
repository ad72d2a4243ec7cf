"""Training: splits, metrics, the loop, and the run folder that they write."""

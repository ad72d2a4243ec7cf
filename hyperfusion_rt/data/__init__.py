"""From files to arrays: volumes, tables, cohorts."""

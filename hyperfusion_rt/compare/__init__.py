"""`hfrt compare`: models on the same parts of one cohort, and whether they differ."""

"""`hfrt bench`: our engines and their peers in one run."""

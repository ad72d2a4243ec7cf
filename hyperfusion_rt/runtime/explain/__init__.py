"""Why an answer is what it is, and what it would be of another row: see `answers`."""

"""What becomes one operation of an engine."""

"""The engines, and the choice of one."""

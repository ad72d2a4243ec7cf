"""Triton kernels. Nothing here is imported before an op runs on a GPU."""

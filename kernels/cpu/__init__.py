"""The CPU backend: the native engine, and which of its algorithms a convolution takes."""

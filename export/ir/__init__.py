"""The network as a graph: from PyTorch, folded by exact algebra, its members joined."""

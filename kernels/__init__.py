"""Fused per-sample operations: one name, one plain reference, a backend per device.

    y[b] = conv3d(x[b], W[b]) + beta[b],   W[b] = g0 + Σ_k e[b, k] · G[k]

The ops need torch.
"""

# Here, not later: of the op and the module that have one name, the package has the op.
from hyperfusion_rt.kernels.ops import Epilogue, conv3d_block, hyper_conv3d, hyper_linear

__all__ = ["Epilogue", "conv3d_block", "hyper_conv3d", "hyper_linear"]

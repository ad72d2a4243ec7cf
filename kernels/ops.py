"""The public ops: one name, one plain reference (`reference.py`), a backend per device."""

from hyperfusion_rt.kernels.backend import whole_ops
from hyperfusion_rt.kernels.conv3d import conv3d
from hyperfusion_rt.kernels.conv3d_block import conv3d_block
from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.hyper_conv3d import hyper_conv3d
from hyperfusion_rt.kernels.hyper_conv_transpose3d import hyper_conv_transpose3d
from hyperfusion_rt.kernels.hyper_linear import hyper_linear
from hyperfusion_rt.kernels.norm_relu import norm_relu

__all__ = [
    "Epilogue",
    "conv3d",
    "conv3d_block",
    "hyper_conv3d",
    "hyper_conv_transpose3d",
    "hyper_linear",
    "norm_relu",
    "whole_ops",
]

"""The layers that the GPU kernels are compiled and timed for, and their calls."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.gpu import cost

TORCH = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16,
         "bf16": torch.bfloat16}  # fmt: skip
SIZE = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}  # bytes


@dataclass(frozen=True)
class Layer:
    """One call of an op. `hyper_linear` has the sizes (1, 1, 1).

    `pool` and `shared` (all groups read the same channels) belong to `conv3d_block`. With AMP,
    generators stay float32 and a block's weights have the dtype of x.
    """

    op: str
    shape: cost.Shape
    pool: bool = False
    shared: bool = False

    @property
    def channels(self) -> int:
        """Of x."""
        return self.shape.cin // (self.shape.groups if self.shared else 1)

    @property
    def stored(self) -> tuple[int, ...]:
        """The size of the result."""
        return tuple(n // 2 for n in self.shape.out) if self.pool else self.shape.out

    def flop(self) -> int:
        """Multiplications and additions that the forward call needs.

        The products, and where it is a convolution the weights of each sample.
        """
        s = self.shape
        if self.op == "hyper_linear":
            return 2 * s.batch * (s.k + 1) * s.weights
        made = 2 * (s.k + 1) * s.weights if self.op == "hyper_conv3d" else 0
        voxels = 8 * prod(self.stored) if self.pool else prod(s.out)
        return s.batch * (2 * voxels * s.weights + made)

    def bytes(self, dtype: str) -> int:
        """Bytes that the forward call must move: x, weights or generators, y, each once."""
        s, size = self.shape, SIZE[dtype]
        volumes = s.batch * (self.channels * prod(s.size) + s.cout * prod(self.stored)) * size
        weights = s.weights * size if self.op == "conv3d_block" else (s.k + 1) * s.weights * 4
        return volumes + weights

    def arguments(self, dtype: str, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random tensors; on the device `meta` they have no memory."""
        s, kind = self.shape, TORCH[dtype]
        generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

        def draw(*size: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Any:
            made = torch.randn(size, device=device, generator=generator)
            return (made * scale).to(dtype)

        w = (s.cout, s.cin // s.groups, *s.kernel)
        fan_in = prod(w[1:])
        if self.op == "conv3d_block":
            x = draw(s.batch, self.channels, *s.size, dtype=kind)
            weight = draw(*w, dtype=kind, scale=fan_in**-0.5)
            return {"x": x, "weight": weight, "shift": draw(s.cout)}
        scale = (fan_in * (s.k + 1)) ** -0.5
        linear = self.op == "hyper_linear"
        shape, size = (w[:2], ()) if linear else (w, s.size)
        return {
            "x": draw(s.batch, s.cin, *size, dtype=kind), "condition": draw(s.batch, s.k),
            "G": draw(s.k, *shape, scale=scale), "h": draw(s.k, s.cout),
            "g0": draw(*shape, scale=scale), "h0": draw(s.cout),
        }  # fmt: skip

    def epilogue(self, arguments: dict[str, torch.Tensor]) -> Epilogue:
        """Of a block: bias and ReLU."""
        return Epilogue(shift=arguments["shift"], slope=0.0)


def _conv(*shape: Any, **more: Any) -> Layer:
    return Layer("hyper_conv3d", cost.Shape(*shape, **more))


def _block(
    batch: int, cin: int, cout: int, size: tuple[int, int, int], *, stride: int = 1,
    padding: int = 1, pool: bool = False, members: int = 1, shared: bool = False,
) -> Layer:  # fmt: skip
    shape = cost.Shape(
        batch, 0, cin * members, cout * members, (3, 3, 3), size, (stride,) * 3, (padding,) * 3,
        groups=members,
    )  # fmt: skip
    return Layer("conv3d_block", shape, pool, shared)


# Calls of the published networks (AD, brain age), and ones that others make: 3x3x3 layers with
# generated weights, early and late. Every configuration occurs.
LAYERS = {
    "AD f=16 block4 shortcut": _conv(32, 8, 128, 256, (1, 1, 1), (8, 12, 8), (2, 2, 2)),
    "AD f=4 block4 shortcut": _conv(32, 8, 32, 64, (1, 1, 1), (8, 12, 8), (2, 2, 2)),
    "64 to 64, 3x3x3, 24x24x28": _conv(8, 8, 64, 64, (3, 3, 3), (24, 24, 28), padding=(1, 1, 1)),
    "64 to 64, 3x3x3, 3x4x5": _conv(8, 8, 64, 64, (3, 3, 3), (3, 4, 5), padding=(1, 1, 1)),
    "16 to 32, 3x3x3, stride 2": _conv(8, 8, 16, 32, (3, 3, 3), (32, 48, 32), (2, 2, 2), (1, 1, 1)),
    "1 to 16, 3x3x3": _conv(8, 8, 1, 16, (3, 3, 3), (64, 96, 64), padding=(1, 1, 1)),
    "brain age linear1": Layer("hyper_linear", cost.Shape(16, 1, 39424, 16, (1, 1, 1), (1, 1, 1))),
    "brain age linear3": Layer("hyper_linear", cost.Shape(32, 1, 32, 64, (1, 1, 1), (1, 1, 1))),
    "AD f=16 stem, pooled": _block(8, 1, 16, (64, 96, 64), pool=True),
    "AD f=16 stem of 4 members": _block(8, 1, 16, (64, 96, 64), pool=True, members=4, shared=True),
    "AD f=4 block1, 4 members": _block(8, 4, 8, (32, 48, 32), members=4),
    "AD f=16 block1.conv1": _block(8, 16, 32, (32, 48, 32)),
    "AD f=16 block2.conv2": _block(8, 64, 64, (16, 24, 16)),
    "AD f=16 block4.conv2": _block(8, 256, 256, (4, 6, 4)),
    "brain age conv3_b, pooled": _block(8, 64, 64, (24, 31, 26), padding=0, pool=True),
}

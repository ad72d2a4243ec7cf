"""What follows a convolution in the same pass over its output."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Epilogue(NamedTuple):
    """`act(scale · y + shift + residual)`, with `act(v) = v if v > 0 else slope · v`.

    `scale [Cout]`, `shift [Cout]`, `residual` shaped like y. `slope` 1: no
    activation; 0: ReLU; between: leaky ReLU.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    slope: float = 1.0

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """By name."""
        return {"scale": self.scale, "shift": self.shift, "residual": self.residual}


def apply(y: Tensor, epilogue: Epilogue) -> Tensor:
    """The epilogue of `y [B, C, ...]` in plain PyTorch."""
    across = (1, -1) + (1,) * (y.dim() - 2)
    if epilogue.scale is not None:
        y = y * epilogue.scale.view(across)
    if epilogue.shift is not None:
        y = y + epilogue.shift.view(across)
    if epilogue.residual is not None:
        y = y + epilogue.residual
    if epilogue.slope != 1.0:
        y = y.clamp(min=0) + epilogue.slope * y.clamp(max=0)
    return y


def check_epilogue(op: str, epilogue: Epilogue, y: tuple[int, ...]) -> None:
    """Raise a ValueError where a tensor of the epilogue does not fit an output shaped `y`."""
    fitting = (y[1:2], y[1:2], y)
    for (name, tensor), expected in zip(epilogue.tensors.items(), fitting, strict=True):
        if tensor is not None and tuple(tensor.shape) != tuple(expected):
            raise ValueError(
                f"{op}: the epilogue's {name} has shape {tuple(tensor.shape)}, but needs "
                f"{tuple(expected)}"
            )

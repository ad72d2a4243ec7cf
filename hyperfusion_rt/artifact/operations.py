"""The operations that a plan is made of, one class each.

Shapes leave the batch axis out: `[C, D, H, W]` or `[F]`. A value is named by a text, and so is a
tensor of the file: the fields `weight`, `bias`, `scale`, `shift` and `slope`, wherever they stand.
The annotations are what is checked when a file is read; see `plan.read_plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hyperfusion_rt.config import Rule

Positive = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Sizes = tuple[Positive, Positive, Positive]
Widths = tuple[Whole, Whole, Whole]
TENSORS = ("weight", "bias", "scale", "shift", "slope")  # the fields that name a tensor
Kind = Literal[
    "relu", "relu6", "leaky_relu", "elu", "prelu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh",
    "hardswish", "hardsigmoid", "softplus", "mish", "clip", "exp", "log", "sqrt", "abs", "erf",
    "power",
]  # fmt: skip
Pairwise = Literal["add", "sub", "mul", "div", "maximum", "minimum"]


def _extent(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (1, 4):
        raise ValueError(f"a shape must be [F] or [C, D, H, W], not {list(shape)}")
    return shape


Extent = Annotated[tuple[Positive, ...], AfterValidator(_extent)]


# --- what operations are given; a graph's nodes (export.ir.graph) have the same -------------------


@dataclass(frozen=True, kw_only=True)
class Activation:
    """`alpha` of leaky_relu and elu, `slope [C]` of prelu; clip is between `alpha` and `beta`;
    power is `x ** alpha`, NaN for negative numbers unless `alpha` is whole.
    """

    kind: Kind
    alpha: Finite = 0.0
    beta: Finite = 0.0
    slope: str | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where a convolution or a pooling looks, along D, H and W. `behind`: the padding there, where
    it is not that in front; of a convolution alone.
    """

    kernel: Sizes
    stride: Sizes
    padding: Widths
    dilation: Sizes = (1, 1, 1)
    behind: Widths | None = None


@dataclass(frozen=True, kw_only=True)
class Transposed(Window):
    """A convolution backwards, whose window is that of the convolution; `extra` voxels of the
    output lie behind its last window. Channels see each other only within their group.
    """

    extra: Widths = (0, 0, 0)
    groups: Positive = 1


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """From voxels to `size` voxels: linear between neighbours, or the nearest one.

    Attributes:
        step: voxels of the input per voxel of the output.
        coordinates: where voxel i of the output lies: half_pixel (i + ½) step - ½, asymmetric and
            align_corners i · step.
        rounding: of the nearest; the first two decide halves.
    """

    size: Sizes
    linear: bool
    step: tuple[Finite, Finite, Finite]
    coordinates: Literal["half_pixel", "asymmetric", "align_corners"]
    rounding: Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] = "floor"


@dataclass(frozen=True, kw_only=True)
class Cropping:
    """Voxels `start`, `start + step`, ... along D, H and W, `size` of them."""

    start: Widths
    step: Sizes
    size: Sizes


@dataclass(frozen=True, kw_only=True)
class Probabilities:
    """Softmax over the channels; `log`: its logarithm."""

    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """What is made of many numbers; l2 is the root of the sum of their squares."""

    kind: Literal["mean", "maximum", "sum", "l2"]


@dataclass(frozen=True, kw_only=True)
class Pooling(Window):
    """The two are PyTorch's; maxima never count the padding."""

    ceil_mode: bool = False
    count_include_pad: bool = True


@dataclass(frozen=True, kw_only=True)
class Subsampling:
    """Only every stride-th voxel counts."""

    stride: Sizes = (1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The voxels that an adaptive pooling makes."""

    size: Sizes


@dataclass(frozen=True, kw_only=True)
class Span:
    """Channels start to stop (without it)."""

    start: Whole
    stop: Positive


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Voxels in front of and behind D, H and W: of one `value`, or as the border's own (edge) or
    those behind it (reflect).
    """

    before: Widths
    after: Widths
    mode: Literal["constant", "edge", "reflect"] = "constant"
    value: Finite = 0.0


@dataclass(frozen=True, kw_only=True)
class Transposition:
    """All numbers, the last axis fastest, as an array of `sizes` with its axes in `order`."""

    sizes: tuple[Positive, ...]
    order: tuple[Whole, ...]


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Channels have mean and variance over all voxels together with those of their group; `eps` is
    added to the variance. No `groups`: each channel has its own.
    """

    eps: Finite
    groups: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How the outputs `[M·N·C]` of M members on N boxes become one; see `models.combine`."""

    members: Positive
    boxes: Positive
    classes: bool
    rule: Rule


# --- operations -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What every operation has.

    Attributes:
        nodes: the outputs of the graph's nodes that it does the work of.
        layer: where it is in the network, for people.
        gflop: of the direct algorithm.
        megabytes: of what it reads and writes, as stored.
    """

    inputs: tuple[str, ...]
    output: str
    shape: Extent
    nodes: tuple[str, ...] = ()
    layer: str = ""
    gflop: Finite = 0.0
    megabytes: Finite = 0.0

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value that it needs."""
        return self.inputs

    @property
    def makes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every value that it makes."""
        return {self.output: self.shape}


@dataclass(frozen=True, kw_only=True)
class Activated(Operation):
    """One that ends with an activation, if `act` is there."""

    act: Activation | None = None


@dataclass(frozen=True, kw_only=True)
class AffineMap:
    """`act(scale · x + shift)`, `scale, shift [C]`."""

    scale: str
    shift: str
    act: Activation | None


@dataclass(frozen=True, kw_only=True)
class SecondOutput(AffineMap):
    """A map of a convolution's own output, kept beside it."""

    output: str
    shape: Extent


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """A 1x1x1 convolution of `input` that is added; `weight [Cin, Cout]`."""

    input: str
    stride: Sizes
    weight: str


@dataclass(frozen=True, kw_only=True)
class _Convolution(Window, Activated):
    """A convolution with what was fused into it, in this order: `prologue` of what it reads, the
    sum with `residual` or `shortcut`, `act`, `pool`, `second`.

    Attributes:
        weight: `[taps, Cin / groups, Cout]`; `[taps, C]` if depthwise.
        bias: `[Cout]`, with the shortcut's.
        algorithm: planar is called one-channel in older files.
        tile: Winograd's, in voxels of the output.
        pairs: its products are of bfloat16 pairs.
        pool: maxima of 2x2x2 voxels are what is kept.
        sparse: every second voxel is what is kept of `output`.
    """

    weight: str
    bias: str
    depthwise: bool
    groups: Positive = 1
    algorithm: Literal["gather", "winograd", "planar", "one-channel", "depthwise"]
    tile: Sizes | None = None
    pairs: bool = False
    prologue: AffineMap | None = None
    residual: str | None = None
    shortcut: Shortcut | None = None
    pool: bool = False
    second: SecondOutput | None = None
    sparse: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value that it needs."""
        beside = (self.residual, self.shortcut.input if self.shortcut else None)
        return (*self.inputs, *(name for name in beside if name is not None))

    @property
    def makes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every value that it makes."""
        second = {self.second.output: self.second.shape} if self.second else {}
        return {self.output: self.shape, **second}


@dataclass(frozen=True, kw_only=True)
class Conv(_Convolution):
    """A convolution with weights of its own."""

    op: Literal["conv"] = "conv"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class HyperConv(_Convolution):
    """`W = Σ_k e_k weight_k`, reads (x, e); weight and bias have a leading [K]."""

    op: Literal["hyper_conv"] = "hyper_conv"
    inputs: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class _ConvTranspose(Transposed, Activated):
    """A convolution backwards; `weight [taps, Cin, Cout / groups]`, `[taps, C]` if depthwise."""

    weight: str
    bias: str
    depthwise: bool


@dataclass(frozen=True, kw_only=True)
class ConvTranspose(_ConvTranspose):
    """One with weights of its own."""

    op: Literal["conv_transpose"] = "conv_transpose"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class HyperConvTranspose(_ConvTranspose):
    """`W = Σ_k e_k weight_k`, reads (x, e); weight and bias have a leading [K]."""

    op: Literal["hyper_conv_transpose"] = "hyper_conv_transpose"
    inputs: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Linear(Activated):
    """`weight [I, O]`, `bias [O]`."""

    op: Literal["linear"] = "linear"
    inputs: tuple[str]
    weight: str
    bias: str


@dataclass(frozen=True, kw_only=True)
class HyperLinear(Activated):
    """Reads (x, e); `weight [K, I, O]`, `bias [K, O]`."""

    op: Literal["hyper_linear"] = "hyper_linear"
    inputs: tuple[str, str]
    weight: str
    bias: str


@dataclass(frozen=True, kw_only=True)
class Affine(Activated):
    """`scale · x + shift`, `[C]` each; without both, the activation alone."""

    op: Literal["affine"] = "affine"
    inputs: tuple[str]
    scale: str | None = None
    shift: str | None = None


@dataclass(frozen=True, kw_only=True)
class GroupNorm(Normalisation, Activated):
    """Mean and variance of a group's channels; `scale, shift [C]`. Or instance_norm, of old."""

    op: Literal["group_norm", "instance_norm"]
    inputs: tuple[str]
    scale: str
    shift: str


@dataclass(frozen=True, kw_only=True)
class ChannelNorm(Normalisation, Operation):
    """Mean and variance of the channels of each voxel; `scale, shift [C]`."""

    op: Literal["channel_norm"] = "channel_norm"
    inputs: tuple[str]
    scale: str
    shift: str


@dataclass(frozen=True, kw_only=True)
class Binary(Activated):
    """Along each axis equal sizes, or one is 1."""

    op: Pairwise
    inputs: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Combine(Activated):
    """`y_c = Σ_k e_k p[k·C + c]` of (p, e)."""

    op: Literal["combine"] = "combine"
    inputs: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Pool(Pooling, Operation):
    """Maxima or averages of windows."""

    op: Literal["max_pool", "avg_pool"]
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class GlobalPool(Subsampling, Operation):
    """A channel's maximum or average, `[C]`; maxima are of all voxels."""

    op: Literal["global_avg_pool", "global_max_pool"]
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class GlobalNorm(Operation):
    """The root of the sum of a channel's squares, `[C]`."""

    op: Literal["global_norm"] = "global_norm"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Reduce(Reduction, Operation):
    """One number of all channels, in every voxel."""

    op: Literal["reduce"] = "reduce"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class AdaptivePool(Grid, Operation):
    """Maxima or averages of equal blocks."""

    op: Literal["adaptive_avg_pool", "adaptive_max_pool"]
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Reshape(Operation):
    """The same numbers as `shape`."""

    op: Literal["reshape"] = "reshape"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Concat(Operation):
    """One after the other, along the channels."""

    op: Literal["concat"] = "concat"
    inputs: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Slice(Span, Operation):
    """A part of the channels."""

    op: Literal["slice"] = "slice"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Pad(Margins, Operation):
    """Voxels around a volume."""

    op: Literal["pad"] = "pad"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Crop(Cropping, Operation):
    """A part of the voxels."""

    op: Literal["crop"] = "crop"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Resize(Resizing, Operation):
    """Other voxels, between those that there are."""

    op: Literal["resize"] = "resize"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Transpose(Transposition, Operation):
    """The same numbers in another order."""

    op: Literal["transpose"] = "transpose"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class OneAnd(Operation):
    """`[1, e]`."""

    op: Literal["one_and"] = "one_and"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Softmax(Probabilities, Operation):
    """Over the channels."""

    op: Literal["softmax"] = "softmax"
    inputs: tuple[str]


@dataclass(frozen=True, kw_only=True)
class Ensemble(Combination, Operation):
    """Of all members' outputs, one after the other: `[C]`."""

    op: Literal["ensemble"] = "ensemble"
    inputs: tuple[str]


AnyConv = Conv | HyperConv
AnyTransposed = ConvTranspose | HyperConvTranspose
AnyOperation = Annotated[
    Conv | HyperConv | ConvTranspose | HyperConvTranspose | Linear | HyperLinear | Affine
    | GroupNorm | ChannelNorm | Binary | Combine | Pool | GlobalPool | GlobalNorm | Reduce
    | AdaptivePool | Reshape | Transpose | Concat | Slice | Crop | Pad | Resize | OneAnd | Softmax
    | Ensemble,
    Field(discriminator="op"),
]  # fmt: skip

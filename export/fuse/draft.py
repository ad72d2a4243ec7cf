"""An operation that still grows, and what decides how it may."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperfusion_rt.artifact.operations import Pooling, Subsampling
from hyperfusion_rt.export.ir.graph import Convolution, Graph, Node
from hyperfusion_rt.kernels.cpu.tiles import BLOCK, few_enough

CONVS = ("conv", "hyper_conv")
TRANSPOSED = ("conv_transpose", "hyper_conv_transpose")
WITH_ACTIVATION = (
    *CONVS,
    *TRANSPOSED,
    "linear",
    "hyper_linear",
    "combine",
    "add",
    "sub",
    "mul",
    "div",
    "maximum",
    "minimum",
    "affine",
    "group_norm",
)


@dataclass
class Draft:
    """`node` and what was fused around it."""

    node: Node
    output: str
    prologue: tuple[Node, Node | None] | None = None  # affine, activation
    residual: str | None = None
    act: Node | None = None
    pool: bool = False
    second: tuple[Node | None, Node | None, str] | None = None  # affine, activation, value
    shortcut: Node | None = None  # a 1x1x1 convolution, added
    tile: tuple[int, int, int] | None = None  # Winograd
    pairs: bool = False  # its products are of bfloat16 pairs
    sparse: bool = False  # only every second voxel is kept
    voxels: int = 0  # that the node computes
    late: list[Node] = field(default_factory=list)  # fused nodes, in their order

    @property
    def inputs(self) -> list[str]:
        """What the operation reads first: the node's inputs, or the prologue's."""
        first = self.node.inputs[:1] if self.prologue is None else self.prologue[0].inputs
        return [*first, *self.node.inputs[1:]]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The outputs of the graph's nodes that are part of this operation."""
        around = [*(self.prologue or ()), *(self.second or ())[:2], self.shortcut]
        nodes = [self.node, *self.late, *(n for n in around if isinstance(n, Node))]
        return tuple(node.output for node in nodes)

    def reads(self, value: str) -> bool:
        """Whether the operation reads `value`."""
        beside = self.shortcut.inputs if self.shortcut is not None else []
        return value in (*self.inputs, self.residual, *beside)

    def stride_of(self, value: str) -> tuple[int, ...] | None:
        """The stride at which it reads `value`, if it looks at single voxels only."""
        if self.residual == value or (self.prologue and self.inputs[0] == value):
            return None
        if self.shortcut is not None and value in self.shortcut.inputs:
            inside = value in self.node.inputs
            return None if inside else self.shortcut.given(Convolution).stride
        if self.node.op == "global_avg_pool":
            return self.node.given(Subsampling).stride
        if self.node.op == "conv" and pointwise(self.node):
            return self.node.given(Convolution).stride
        return None


def dense(node: Node) -> bool:
    """Whether every channel of a convolution sees all others."""
    return node.given(Convolution).groups == 1


def planar(node: Node, graph: Graph, *, pools: bool = False) -> bool:
    """Whether a convolution reads an input of `graph`, of few channels, as it is given.

    `pools`: and takes the maxima of 2x2x2 blocks of its result.
    """
    x = node.inputs[0]
    if node.op != "conv" or x not in graph.inputs or len(graph.shapes[x]) != 4 or not dense(node):
        return False
    cout, cin = node.arrays["weight"].shape[:2]
    stride = node.given(Convolution).stride[2]
    strides = stride == 1 or (stride == 2 and cout >= BLOCK and not pools)
    return strides and few_enough(cin, cout)


def halves(node: Node, shape: tuple[int, ...]) -> bool:
    """Max-pooling of 2x2x2 blocks of a volume of `shape`, without padding."""
    window = node.given(Pooling)
    even = all(n % 2 == 0 for n in shape[1:])
    return (
        window.kernel == window.stride == (2, 2, 2)
        and window.padding == (0, 0, 0)
        and window.dilation == (1, 1, 1)
        and (even or not window.ceil_mode)
        and min(shape[1:]) >= 2
    )


def pointwise(node: Node) -> bool:
    """Whether a convolution looks at single voxels."""
    window = node.given(Convolution)
    plain = window.padding == (0, 0, 0) and window.behind is None
    return window.kernel == (1, 1, 1) and plain and dense(node)


def winograd(node: Node) -> bool:
    """Whether Winograd's filtering can do a convolution: 3x3x3, stride 1 or 2, and several channels
    that see each other.
    """
    window = node.given(Convolution)
    return (
        window.kernel == (3, 3, 3)
        and window.stride in ((1, 1, 1), (2, 2, 2))
        and window.dilation == (1, 1, 1)
        and node.arrays["weight"].shape[-4] > 1
    )

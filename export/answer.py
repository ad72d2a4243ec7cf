"""What the output of an imported network means: its graph, with that as its last operations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.operations import Activation, Probabilities
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.export.import_options import ImportOptions
from hyperfusion_rt.export.ir.ensemble import IMAGE, OUTPUT
from hyperfusion_rt.export.ir.graph import Convolution, Graph, Node, Shape

_SIGMOIDS = ("sigmoid", "hardsigmoid")  # 1/2 at a logit of 0


def answer(path: Path, graph: Graph, options: ImportOptions) -> Graph:
    """The graph `image → output` of the file `path`, whose output then is what engines answer.

    Logits `[C]` of classes, a number `[1]`, or of a segmentation scores `[L, D, H, W]` of labels.

    Raises:
        ConfigError: the options do not fit the output.
    """
    made = _Answer(path, graph.copy())
    if options.segmentation:
        made.labels(len(options.segmentation))
    else:
        made.vector()
        if options.classes:
            made.classes(len(options.classes))
        elif options.bins:
            made.bins(options.bins)
        elif made.count != 1:
            raise made.wrong(
                f"answers {made.count} numbers: say what they are with `classes` or `bins`"
            )
    made.graph.outputs = [made.name]
    made.graph.remove_dead()
    return made.graph


class _Answer:
    """`name`: of the value that is the answer so far, of `count` channels or numbers; `last`: the
    operation that made the file's output, `ends` its kind."""

    def __init__(self, path: Path, graph: Graph) -> None:
        self.path, self.graph, self.name = path, graph, OUTPUT
        self.shape = graph.shapes[OUTPUT]
        self.count = self.shape[0]
        last = graph.producer(OUTPUT)
        while last is not None and last.op == "reshape":
            last = graph.producer(last.inputs[0])
        self.last, self.ends = last, last.op if last is not None else ""

    def wrong(self, text: str) -> ConfigError:
        """That the output is not what was said of it."""
        return ConfigError(f"{self.path}: {text}", code="import-output")

    def vector(self) -> None:
        """An output of one voxel as a vector."""
        if math.prod(self.shape[1:]) != 1:
            raise self.wrong(
                f"its output is {list(self.shape)} without the batch, a volume: say what its "
                "channels are with `segmentation`, or run it with `hyperfusion_rt.compile`"
            )
        if len(self.shape) > 1:
            self._then("reshape", (self.count,))

    def classes(self, wanted: int) -> None:
        """Logits of classes, from logits or probabilities."""
        if (self.count, wanted) == (1, 2):  # one logit: of the second class
            if self.ends == "activation":
                raise self.wrong(
                    "ends with one activated number; two classes need its logit: export the "
                    "network without its last sigmoid"
                )
            self._then("linear", (2,), weight=np.array([[0.0], [1.0]]), bias=np.zeros(2))
        elif self.count != wanted:
            raise ConfigError(
                f"`classes`: {wanted}, but {self.path} answers {self.count} numbers",
                code="import-output",
            )
        elif self.ends == "softmax" and not self._log:
            # Of the logarithm of probabilities, the softmax is the probabilities.
            assert self.last is not None
            self.last.attrs = Probabilities(log=True)

    def bins(self, given: tuple[float, ...]) -> None:
        """The mean of soft bins, from logits or probabilities."""
        centres = np.asarray(given)
        if len(centres) == 2 and self.count != 2:
            centres = np.linspace(float(centres[0]), float(centres[1]), self.count)
        if len(centres) != self.count:
            raise ConfigError(
                f"`bins`: {len(centres)} centres, but {self.path} answers {self.count} numbers",
                code="import-output",
            )
        if self.ends != "softmax" or self._log:
            self._then("softmax", (self.count,), Probabilities())
        self._then("linear", (1,), weight=centres[None], bias=np.zeros(1))

    def labels(self, wanted: int) -> None:
        """A score for each label at every voxel, of which the largest counts."""
        image = self.graph.inputs[IMAGE]
        if self.shape[1:] != image[1:]:
            raise self.wrong(
                f"its output is {list(self.shape)} without the batch, its image {list(image)}: a "
                "segmentation has the image's voxels"
            )
        kind = self._activation
        if (self.count, wanted) == (1, 2):  # one logit or probability: of the second label
            if kind and kind not in _SIGMOIDS:
                raise self.wrong(
                    f"its last operation is {kind}: at which number does a label begin?"
                )
            first = np.array([0.5 if kind else 0.0, 0.0])
            weight = np.array([0.0, 1.0]).reshape(2, 1, 1, 1, 1)
            window = Convolution(kernel=(1, 1, 1), stride=(1, 1, 1), padding=(0, 0, 0), groups=1)
            self._then("conv", (2, *self.shape[1:]), window, weight=weight, bias=first)
        elif self.count != wanted:
            raise ConfigError(
                f"`segmentation`: {wanted} labels, but {self.path} answers {self.count} channels"
                + ("; name the background, too" if self.count == wanted + 1 else ""),
                code="import-output",
            )
        elif kind in _SIGMOIDS:
            raise self.wrong(
                f"each of its {self.count} channels has a {kind} of its own: regions that may "
                "overlap, and a voxel has one label; export the network without it if the largest "
                "is meant"
            )
        elif self.ends == "softmax" and self.last is not None and self.last.output == OUTPUT:
            self.name = self.last.inputs[0]  # the order stays

    @property
    def _activation(self) -> str:
        """The kind of the one that the network ends with; empty: it ends with something else."""
        if self.last is None or self.ends != "activation":
            return ""
        return self.last.given(Activation).kind

    @property
    def _log(self) -> bool:
        return bool(self.last and self.last.given(Probabilities).log)

    def _then(
        self, op: str, shape: Shape, attrs: Any = None, **arrays: NDArray[np.float64]
    ) -> None:
        made = f"answer{len(self.graph.nodes)}"
        self.graph.nodes.append(Node(op, [self.name], made, attrs, arrays, "the answer"))
        self.graph.shapes[made], self.name = shape, made

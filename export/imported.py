"""From an ONNX file to an artifact: a network that others trained, run as one of ours."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyperfusion_rt.artifact.card import write_card
from hyperfusion_rt.artifact.manifest import FORMAT_VERSION, Artifact, Manifest, Provenance
from hyperfusion_rt.artifact.operations import Probabilities
from hyperfusion_rt.artifact.scan_reference import write_reference
from hyperfusion_rt.config import Preprocessing, TableSpec
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.export.build import check_place, export_engine, versions
from hyperfusion_rt.export.compare import Expected
from hyperfusion_rt.export.import_options import ImportOptions
from hyperfusion_rt.export.ir.ensemble import IMAGE, OUTPUT, Ensemble, join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Graph, Node, run
from hyperfusion_rt.export.onnx_import.read import read_onnx
from hyperfusion_rt.export.options import ExportOptions
from hyperfusion_rt.files import replacing_folder, sha256

# The middle of the MNI152 template's field of view, in mm; and the boxes of the preset `ad`.
_MIDDLE = (-0.5, -17.5, 18.5)
_HIPPOCAMPI: tuple[dict[str, Any], ...] = (
    {"name": "left", "center": (-26.5, -20.5, -14.5)},
    {"name": "right", "center": (26.5, -20.5, -14.5), "mirror": True},
)
_NORMALISATION = {"zscore": "zscore-foreground", "minmax": "minmax", "none": "none"}
_CASES = 2
# Of the outputs' scale: the file by ONNX Runtime, against the graph in float64.
_TOLERANCE = 1e-3


def import_network(path: Path, options: ImportOptions | None = None, **fields: Any) -> Artifact:
    """Make an artifact of an ONNX file whose one input is an image `[B, 1, D, H, W]`.

    The engines are compared with the file's graph in float64, and that with ONNX Runtime.

    Args:
        options: how scans become the input, and what the output means.
        fields: of `ImportOptions`; they overrule those of `options`.

    Raises:
        HyperFusionError: the file cannot be read or does what engines cannot do, the options do not
            fit it, the artifact exists, or an engine differs.
    """
    options = ImportOptions(**{**dict(options or ()), **fields})
    out = options.out or path.with_suffix(".hfrt")
    if out.suffix != ".hfrt":
        raise ConfigError(f"{out}: an artifact's name ends in .hfrt", code="export-place")
    check_place(out, force=options.force)
    graph = _image_network(path, options)
    recipe = _recipe(graph, options)
    answer = _answer(path, graph, options)
    with replacing_folder(out) as folder:
        artifact = _build(path, folder, out.stem, answer, recipe, options)
        check_place(out, force=options.force)
    return Artifact(out, artifact.manifest, artifact.notes)


def _image_network(path: Path, options: ImportOptions) -> Graph:
    """The file's graph, with the input `image` and the output `output`."""
    shapes = {}
    if options.shape is not None:
        shapes = {_only_input(path): (1, *options.shape)}
    graph = read_onnx(path, shapes)
    if len(graph.inputs) != 1:
        raise ConfigError(
            f"{path}: {len(graph.inputs)} inputs ({', '.join(graph.inputs)}); an artifact reads "
            "one image",
            code="import-input",
        )
    ((name, shape),) = graph.inputs.items()
    if len(shape) != 4 or shape[0] != 1:
        raise ConfigError(
            f"{path}: the input {name} is {list(shape)} without the batch; an artifact's image is "
            "[1, D, H, W]",
            code="import-input",
        )
    wanted = options.output or graph.outputs[0]
    if wanted not in graph.outputs:
        raise ConfigError(
            f"`output` {wanted!r}: {path} has {', '.join(graph.outputs)}", code="option-wrong"
        )
    graph = replace(graph, outputs=[wanted])
    graph.remove_dead()
    return _renamed(graph, {name: IMAGE, wanted: OUTPUT})


def _only_input(path: Path) -> str:
    from hyperfusion_rt.export.onnx_import.model_file import open_model

    model = open_model(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [item.name for item in model.graph.input if item.name not in weights]
    return names[0] if names else ""


def _renamed(graph: Graph, names: dict[str, str]) -> Graph:
    def new(value: str) -> str:
        # A value of the file may have the name already.
        return names.get(value, f"{value}_" if value in names.values() else value)

    nodes = [replace(n, inputs=[*map(new, n.inputs)], output=new(n.output)) for n in graph.nodes]
    return Graph(
        {new(k): v for k, v in graph.inputs.items()},
        nodes,
        [new(name) for name in graph.outputs],
        {new(k): v for k, v in graph.shapes.items()},
    )


def _recipe(graph: Graph, options: ImportOptions) -> Preprocessing:
    """From a scan to the network's input."""
    if options.box == "hippocampi":
        boxes: tuple[dict[str, Any], ...] = _HIPPOCAMPI
    elif options.box == "whole":
        boxes = ({"name": "whole", "center": _MIDDLE},)
    else:
        try:
            x, y, z = (float(n) for n in options.box.split(","))
        except ValueError:
            raise ConfigError(
                f"`box` {options.box!r}: whole, hippocampi, or X,Y,Z in mm", code="option-wrong"
            ) from None
        boxes = ({"name": "box", "center": (x, y, z)},)
    try:
        return Preprocessing.model_validate(
            {
                "boxes": boxes,
                "shape": graph.inputs[IMAGE][1:],
                "spacing": options.spacing,
                "orientation": options.orientation.upper(),
                "normalisation": _NORMALISATION[options.normalise],
            }
        )
    except ValueError as error:
        first = str(error).splitlines()
        raise ConfigError(
            f"`orientation`: {first[2].strip() if len(first) > 2 else error}", code="option-wrong"
        ) from None


def _answer(path: Path, graph: Graph, options: ImportOptions) -> Graph:
    """The graph with what is said of it as its output: logits of classes, or a number."""
    shape = graph.shapes[OUTPUT]
    if math.prod(shape[1:]) != 1:
        raise ConfigError(
            f"{path}: its output is {list(shape)} without the batch: an answer is a class or a "
            "number, and this is a volume; `hyperfusion_rt.compile` runs it",
            code="import-output",
        )
    graph = graph.copy()
    last = graph.producer(OUTPUT)
    while last is not None and last.op == "reshape":
        last = graph.producer(last.inputs[0])
    ends = last.op if last is not None else ""
    log = bool(last and ends == "softmax" and last.given(Probabilities).log)
    name, count = OUTPUT, shape[0]

    def then(op: str, size: int, attrs: Any = None, **arrays: NDArray[np.float64]) -> None:
        nonlocal name
        made = f"answer{len(graph.nodes)}"
        graph.nodes.append(Node(op, [name], made, attrs, arrays, "the answer"))
        graph.shapes[made], name = (size,), made

    if len(shape) > 1:
        then("reshape", count)
    if options.classes:
        wanted = len(options.classes)
        if (count, wanted) == (1, 2):  # one logit: of the second class
            if ends == "activation":
                raise ConfigError(
                    f"{path}: ends with one activated number; two classes need its logit: export "
                    "the network without its last sigmoid",
                    code="import-output",
                )
            then("linear", 2, weight=np.array([[0.0], [1.0]]), bias=np.zeros(2))
        elif count != wanted:
            raise ConfigError(
                f"`classes`: {wanted}, but {path} answers {count} numbers", code="import-output"
            )
        elif ends == "softmax" and not log:
            # Of the logarithm of probabilities, the softmax is the probabilities.
            assert last is not None
            last.attrs = Probabilities(log=True)
    elif options.bins:
        centres = np.asarray(options.bins)
        if len(centres) == 2 and count != 2:
            centres = np.linspace(float(centres[0]), float(centres[1]), count)
        if len(centres) != count:
            raise ConfigError(
                f"`bins`: {len(centres)} centres, but {path} answers {count} numbers",
                code="import-output",
            )
        if ends != "softmax" or log:
            then("softmax", count, Probabilities())
        then("linear", 1, weight=centres[None], bias=np.zeros(1))
    elif count != 1:
        raise ConfigError(
            f"{path}: answers {count} numbers: say what they are with `classes` or `bins`",
            code="import-output",
        )
    graph.outputs = [name]
    return graph


class _Graph(nn.Module):
    """A graph as a module `(image, tabular) → output`, in the inputs' dtype."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __deepcopy__(self, memo: dict[int, Any]) -> _Graph:
        return self  # it has no state

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        return run(self.graph, {IMAGE: image})[0]


def _build(
    path: Path,
    folder: Path,
    name: str,
    graph: Graph,
    recipe: Preprocessing,
    options: ImportOptions,
) -> Artifact:
    shape = (_CASES, len(recipe.boxes), 1, *recipe.shape)
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    rows = [np.zeros((_CASES, 0), np.float32)]
    classes = bool(options.classes)
    ensemble = join([fold(graph)], [0], len(recipe.boxes), classes=classes, rule="mean")
    expected = Expected.of(
        [_Graph(graph)], image, rows, real=False, classes=classes, rule="mean", unit=options.unit
    )
    spread = 1.0 if classes else max(float(np.abs(expected.outputs).max()), 1e-6)
    expected = replace(expected, drift=expected.drift * spread)
    note = _against_the_file(path, graph, image[:1, 0], options)
    export = ExportOptions(engines=options.engines, precision=options.precision)
    files = [
        file
        for engine in options.engines
        for file in export_engine(engine, ensemble, expected, folder, export)
    ]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        task="classification" if classes else "regression",
        classes=options.classes,
        unit="probability" if classes else options.unit,
        preprocessing=recipe,
        table=TableSpec(
            features=(),
            target="class" if classes else options.target,
            classes=dict.fromkeys(options.classes, ()),
            unit=options.unit,
        ),
        members=(TabularEncoder(columns=()),),
        combine="mean",
        engines=tuple(files),
        provenance=_provenance(path, graph, ensemble),
    )
    try:
        stored = write_reference(
            folder, Reference(template_landmarks(), checks=options.scan_checks)
        )
        manifest = manifest.model_copy(update={"scan_reference": stored})
    except MissingExtraError:
        pass
    manifest = manifest.model_copy(update={"card": write_card(folder, manifest)})
    return Artifact(folder, manifest, (note,) if note else ()).write()


def _against_the_file(
    path: Path, graph: Graph, image: NDArray[np.float32], options: ImportOptions
) -> str:
    """Compare the graph with what ONNX Runtime makes of the file; says what was not compared."""
    try:
        import onnxruntime
    except ImportError:
        return f"{path} was not compared with ONNX Runtime, which is not installed"
    try:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        typed = image.astype(np.float16 if "float16" in given.type else np.float32)
        wanted = options.output or session.get_outputs()[0].name
        (found,) = session.run([wanted], {given.name: typed})
    except Exception as error:
        return (
            f"{path} was not compared with ONNX Runtime, which says: {str(error).splitlines()[0]}"
        )
    own = read_onnx(path, {given.name: image.shape[1:]} if options.shape else {})
    values = run(own, {next(iter(own.inputs)): torch.from_numpy(image).double()})
    expected = dict(zip(own.outputs, values, strict=True))[wanted].numpy()
    off = np.abs(np.asarray(found, np.float64).reshape(expected.shape) - expected).max()
    off /= max(float(np.abs(expected).max()), 1e-12)
    if not off <= _TOLERANCE:
        raise HyperFusionError(
            f"{path}: what was read of it differs from ONNX Runtime by {off:.1e} of the output's "
            "scale; nothing was imported",
            code="export-differs",
        )
    return ""


def _provenance(path: Path, graph: Graph, ensemble: Ensemble) -> Provenance:
    from hyperfusion_rt.export.fuse.fuser import plan_ensemble

    trunk = plan_ensemble(ensemble).trunk
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        run="",
        network={
            "architecture": "imported",
            "fusion": "image",
            "file": path.name,
            "sha256": sha256(path),
        },
        parameters=sum(array.size for node in graph.nodes for array in node.arrays.values()),
        gflop=sum(op.gflop for op in trunk.ops),
        versions=versions(),
        cases={},
        metrics={},
    )

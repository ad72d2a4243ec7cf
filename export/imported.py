"""From an ONNX file to an artifact: a network that others trained, run as one of ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyperfusion_rt.artifact.card import write_card
from hyperfusion_rt.artifact.manifest import FORMAT_VERSION, Artifact, Manifest, Provenance
from hyperfusion_rt.artifact.scan_reference import write_reference
from hyperfusion_rt.config import Preprocessing, TableSpec
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.export.answer import answer
from hyperfusion_rt.export.build import check_place, export_engine, versions
from hyperfusion_rt.export.compare import Expected, ExpectedLabels
from hyperfusion_rt.export.import_options import ImportOptions
from hyperfusion_rt.export.ir.ensemble import IMAGE, OUTPUT, Ensemble, join, labelled
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Graph, run
from hyperfusion_rt.export.onnx_import.read import read_onnx
from hyperfusion_rt.export.options import ExportOptions
from hyperfusion_rt.export.recipe import OPEN, recipe_of
from hyperfusion_rt.files import replacing_folder, sha256

_CASES = 2
# Of the outputs' scale: the file by ONNX Runtime, against the graph in float64.
_TOLERANCE = 1e-3


def import_network(path: Path, options: ImportOptions | None = None, **fields: Any) -> Artifact:
    """Make an artifact of an ONNX file whose one input is `[B, C, D, H, W]`, C images of a case.

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
    recipe = recipe_of(options)
    network = image_network(path, recipe, options.output)
    recipe = recipe.model_copy(update={"shape": network.graph.inputs[IMAGE][1:]})
    answering = answer(path, network.graph, options)
    note = _against_the_file(path, network)
    with replacing_folder(out) as folder:
        artifact = _build(path, folder, out.stem, answering, recipe, options, note)
        check_place(out, force=options.force)
    return Artifact(out, artifact.manifest, artifact.notes)


@dataclass(frozen=True)
class ImageNetwork:
    """The graph of a file, `image → output`, and what the file calls them; `last`: which of these
    it has with the channels last."""

    graph: Graph
    image: str
    output: str
    last: frozenset[str]


def image_network(path: Path, recipe: Preprocessing, output: str | None = None) -> ImageNetwork:
    """What an ONNX file makes of an image; the recipe's shape counts unless it is `OPEN`.

    `output`: which of several, None: the first.

    Raises:
        HyperFusionError: the file cannot be read, or has another input or no such output.
    """
    channels, shape = len(recipe.channels), recipe.shape
    graph = read_onnx(path, None if shape == OPEN else (channels, *shape))
    if len(graph.inputs) != 1:
        raise ConfigError(
            f"{path}: {len(graph.inputs)} inputs ({', '.join(graph.inputs)}); an artifact reads "
            "one image",
            code="import-input",
        )
    ((name, found),) = graph.inputs.items()
    if len(found) != 4 or found[0] != channels:
        several = f"{found[0]} images of a case" if len(found) == 4 else "no volume"
        raise ConfigError(
            f"{path}: the input {name} is {list(found)} without the batch, {several}; the recipe "
            f"has [{channels}, D, H, W]"
            + ("; name the images as channels of a `recipe`" if len(found) == 4 else ""),
            code="import-input",
        )
    wanted = output or graph.outputs[0]
    if wanted not in graph.outputs:
        raise ConfigError(
            f"`output` {wanted!r}: {path} has {', '.join(graph.outputs)}", code="option-wrong"
        )
    last = frozenset(graph.last)
    graph = replace(graph, outputs=[wanted])
    graph.remove_dead()
    return ImageNetwork(_renamed(graph, {name: IMAGE, wanted: OUTPUT}), name, wanted, last)


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
    note: str,
) -> Artifact:
    """Write the engines and the manifest; `note`: what the artifact's maker should know."""
    image = _images(_CASES, *recipe.images_shape)
    rows = [np.zeros((_CASES, 0), np.float32)]
    classes, labels = bool(options.classes), options.segmentation
    if labels:
        ensemble = labelled(fold(graph), len(recipe.boxes))
    else:
        ensemble = join([fold(graph)], [0], len(recipe.boxes), classes=classes, rule="mean")
    expected = (ExpectedLabels if labels else Expected).of(
        [_Graph(graph)], image, rows, real=False, classes=classes, rule="mean", unit=options.unit
    )
    if not (classes or labels):
        size = max(float(np.abs(expected.outputs).max()), 1e-6)
        expected = replace(expected, drift=expected.drift * size)
    export = ExportOptions(engines=options.engines, precision=options.precision)
    files = [
        file
        for engine in options.engines
        for file in export_engine(engine, ensemble, expected, folder, export)
    ]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        task="segmentation" if labels else "classification" if classes else "regression",
        classes=options.classes,
        labels=labels,
        unit="ml" if labels else "probability" if classes else options.unit,
        preprocessing=recipe,
        table=TableSpec(
            features=(),
            target="segmentation" if labels else "class" if classes else options.target,
            classes=dict.fromkeys(options.classes, ()),
            unit=options.unit,
        ),
        members=(TabularEncoder(columns=()),),
        combine="mean",
        engines=tuple(files),
        provenance=_provenance(path, options.output, graph, ensemble),
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


def _images(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _against_the_file(path: Path, network: ImageNetwork) -> str:
    """Compare the graph with what ONNX Runtime makes of the file; says what was not compared."""
    try:
        import onnxruntime
    except ImportError:
        return f"{path} was not compared with ONNX Runtime, which is not installed"
    image = _images(1, *network.graph.inputs[IMAGE])
    try:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        kind = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
        given = np.moveaxis(image, 1, -1) if network.image in network.last else image
        (found,) = session.run([network.output], {network.image: given.astype(kind)})
    except Exception as error:
        return (
            f"{path} was not compared with ONNX Runtime, which says: {str(error).splitlines()[0]}"
        )
    expected = run(network.graph, {IMAGE: torch.from_numpy(image).double()})[0].numpy()
    made = np.asarray(found, np.float64)
    made = np.moveaxis(made, -1, 1) if network.output in network.last else made
    off = np.abs(made.reshape(expected.shape) - expected).max()
    off /= max(float(np.abs(expected).max()), 1e-12)
    if not off <= _TOLERANCE:
        raise HyperFusionError(
            f"{path}: what was read of it differs from ONNX Runtime by {off:.1e} of the output's "
            "scale; nothing was imported",
            code="export-differs",
        )
    return ""


def _provenance(path: Path, output: str | None, graph: Graph, ensemble: Ensemble) -> Provenance:
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
            **({} if output is None else {"output": output}),
        },
        parameters=sum(array.size for node in graph.nodes for array in node.arrays.values()),
        gflop=sum(op.gflop for op in trunk.ops),
        versions=versions(),
        cases={},
        metrics={},
    )

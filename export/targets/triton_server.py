"""A model repository for NVIDIA Triton Inference Server.

    NAME/          the ensemble: image and raw table in, probabilities (or a number) out
    NAME_trunk/    image → features          ONNX Runtime, or TensorRT on the GPU it was built on
    NAME_head/     features, raw table → output    ONNX Runtime; the table's encoder is inside

A client sends `image [B, N·C, D, H, W]` (the boxes, of each its C channels, cropped and normalised
as the artifact's manifest says: `hyperfusion_rt.data.volumes.extract`) and one value per column of
the table; see `onnx_file.table`. The configurations are messages of the published protobuf schema,
as the package tritonclient ships it:
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfusion_rt.artifact.plan import join_boxes, split_boxes
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, Column
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.export.compare import TOLERANCE
from hyperfusion_rt.export.ir.ensemble import IMAGE, MEMBERS, OUTPUT, Ensemble
from hyperfusion_rt.export.ir.graph import TABLE, run
from hyperfusion_rt.export.ir.typed import Typed
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.onnx_file.table import input_name
from hyperfusion_rt.export.options import Backend
from hyperfusion_rt.files import replacing_folders, write_text
from hyperfusion_rt.runtime.engines.gpu import find_gpu
from hyperfusion_rt.runtime.engines.trt import TrtEngine
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions, build, load_package

CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "1"
FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
MAX_QUEUE_DELAY_US = 2000  # how long a request may wait for others to join its batch


def schema() -> Any:
    """The module with the published messages.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise MissingExtraError("tritonclient[grpc]", "serve", "a model repository") from None
    return model_config_pb2


def write_repository(
    folder: Path,
    name: str,
    ensemble: Ensemble,
    encoders: Sequence[TabularEncoder],
    classes: Sequence[str],
    image: NDArray[np.float32],
    *,
    typed: Typed,
    backend: Backend,
    options: BuildOptions,
    force: bool = False,
) -> list[Path]:
    """Write the models of `name` into the repository `folder`; returns their folders.

    Other models there are left alone; what a model replaces is gone only when all are in place.
    `image [K, N·C, D, H, W]`: the cases with which a plan that was built here is compared.

    Raises:
        ConfigError: they exist and `force` is not given, or the name is not one.
        MissingExtraError, EngineError: tritonclient, or what the backend needs, is missing.
        HyperFusionError: a configuration does not fit its model.
    """
    check_target(folder, name, backend, typed.precision, force)
    # The server does not fill a batch up: a lone request is a batch of one.
    options = replace(options, batch=(1, *options.batch[1:]))
    models = _Models(schema(), name, ensemble, encoders[0], bool(classes), options.batch)
    with replacing_folders([folder / n for n in model_names(name)], _place(folder)) as scratch:
        configs = models.configs(backend)
        for model in configs:
            (scratch / model / VERSION).mkdir(parents=True)
        if models.trunk in configs:
            place = scratch / models.trunk / VERSION
            write_onnx(ensemble, place / "model.onnx", typed, "trunk")
            if backend == "tensorrt":
                _build_plan(place, ensemble, image, typed.precision, options)
        path = scratch / models.head / VERSION / "model.onnx"
        write_onnx(ensemble, path, part="head", encoders=encoders)
        for model, config in configs.items():
            _write_config(scratch / model / CONFIG, config)
            if classes and model != models.trunk:
                write_text(scratch / model / LABELS, "\n".join(classes) + "\n")
        check_repository(scratch, name)
    return [folder / model for model in configs]


@dataclass(frozen=True)
class _Models:
    """The configurations of an ensemble, its trunk and its head, as messages of `pb`, the schema.

    `batch`: the smallest, the usual and the largest one. `labels`: the outputs have names.
    """

    pb: Any
    name: str
    ensemble: Ensemble
    encoder: TabularEncoder
    labels: bool
    batch: tuple[int, int, int]

    @property
    def trunk(self) -> str:
        return model_names(self.name)[1]

    @property
    def head(self) -> str:
        return model_names(self.name)[2]

    @property
    def features(self) -> list[str]:
        """What the trunk makes; nothing, where the network reads no image."""
        trunk = self.ensemble.trunk
        return [value for value in trunk.outputs if value not in trunk.inputs]

    def configs(self, backend: Backend) -> dict[str, Any]:
        """Model → its configuration; `backend` runs the trunk."""
        shapes = self.ensemble.head.inputs
        reads_image = IMAGE in shapes or bool(self.features)
        image = [self._tensor(IMAGE, self.ensemble.inputs[IMAGE])] if reads_image else []
        table = [self._cell(column) for column in self.encoder.columns]
        read = [self._tensor(v, s) for v, s in shapes.items() if v != TABLE] + table
        made = self.ensemble.head.shapes
        results = [self._tensor(v, made[v], output=True) for v in (OUTPUT, MEMBERS)]
        if self.labels:
            results[0].label_filename = LABELS
        found = {}
        if self.features:
            engine = "tensorrt" if backend == "tensorrt" else "onnxruntime"
            features = [self._tensor(v, shapes[v], output=True) for v in self.features]
            found[self.trunk] = self._model(self.trunk, engine, image, features)
        found[self.head] = self._model(self.head, "onnxruntime", read, results, cpu=True)
        found[self.name] = self._whole([*image, *table], [t.name for t in read], results)
        return found

    def _tensor(self, name: str, dims: Sequence[int], *, output: bool = False) -> Any:
        of = self.pb.ModelOutput if output else self.pb.ModelInput
        return of(name=name, data_type=self.pb.TYPE_FP32, dims=list(dims))

    def _cell(self, column: Column) -> Any:
        text = isinstance(column, CategoricalColumn)
        kind = self.pb.TYPE_STRING if text else self.pb.TYPE_FP64
        return self.pb.ModelInput(name=input_name(column), data_type=kind, dims=[1])

    def _model(
        self,
        name: str,
        backend: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        cpu: bool = False,
    ) -> Any:
        """A model that joins waiting requests into batches.

        The server places it on its GPUs, or on the CPU where it has none; one with `cpu` always
        there: the head is a few thousand operations on vectors, with texts and doubles.
        """
        pb = self.pb
        _, usual, most = self.batch
        config = pb.ModelConfig(name=name, backend=backend, max_batch_size=most)
        config.default_model_filename = FILES[backend]
        config.input.extend(inputs)
        config.output.extend(outputs)
        config.dynamic_batching.preferred_batch_size.append(usual)
        config.dynamic_batching.max_queue_delay_microseconds = MAX_QUEUE_DELAY_US
        kind = pb.ModelInstanceGroup.KIND_CPU if cpu else pb.ModelInstanceGroup.KIND_AUTO
        config.instance_group.add(count=2 if cpu else 1, kind=kind)
        return config

    def _whole(self, inputs: Sequence[Any], read: Sequence[str], results: Sequence[Any]) -> Any:
        """The ensemble: the trunk, where there is one, then the head, which reads `read`."""
        most = self.batch[2]
        whole = self.pb.ModelConfig(name=self.name, platform="ensemble", max_batch_size=most)
        whole.input.extend(inputs)
        whole.output.extend(results)
        steps = whole.ensemble_scheduling.step
        if self.features:
            same = {value: value for value in self.features}
            steps.add(
                model_name=self.trunk, model_version=-1, input_map={IMAGE: IMAGE}, output_map=same
            )
        steps.add(
            model_name=self.head,
            model_version=-1,
            input_map={value: value for value in read},
            output_map={value: value for value in (OUTPUT, MEMBERS)},
        )
        return whole


def _write_config(path: Path, config: Any) -> None:
    from google.protobuf import text_format

    write_text(path, text_format.MessageToString(config))


def model_names(name: str) -> tuple[str, str, str]:
    """The ensemble's name, its trunk's and its head's."""
    return name, f"{name}_trunk", f"{name}_head"


def check_target(folder: Path, name: str, backend: Backend, precision: str, force: bool) -> None:
    """Check, before anything is built, that the models of `name` may be written into `folder`.

    Raises:
        ConfigError: the name is none, the precision cannot be served, or the models exist.
        MissingExtraError, EngineError: tritonclient, or what the backend needs, is missing.
    """
    schema()
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ConfigError(
            f"`serve` {folder}: {above} is a file; name a folder", code="export-place"
        )
    if backend == "tensorrt":
        load_package("trt")
        find_gpu()
    if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError(
            f"`serve`: {name!r} cannot be a model's name: letters, digits and -_.",
            code="serve-name",
        )
    if backend == "onnx" and precision == "bf16":
        raise ConfigError(
            "`serve`: ONNX Runtime has no bfloat16 convolutions; use fp32 or fp16",
            code="precision-unsupported",
        )
    existing = [model for model in model_names(name) if os.path.lexists(folder / model)]
    if existing and not force:
        raise ConfigError(
            f"{folder}: has {', '.join(existing)}; choose another folder, or replace them with "
            "`force`",
            code="export-exists",
        )


def _place(folder: Path) -> Path:
    """Where the models are made: on the file system of the repository `folder`, which is made, too.

    Beside it where that can be: the server would take any folder in it for a model.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parent = folder.resolve().parent
        beside = os.access(parent, os.W_OK) and parent.stat().st_dev == folder.stat().st_dev
    except OSError as error:
        raise HyperFusionError(
            f"{folder}: cannot be written: {error.strerror}", code="output-cannot-be-written"
        ) from None
    return parent if beside else folder


def _build_plan(
    place: Path,
    ensemble: Ensemble,
    image: NDArray[np.float32],
    precision: str,
    options: BuildOptions,
) -> None:
    """Have TensorRT's plan, compared on the cases `image`, in the place of the trunk's ONNX file.

    Raises:
        HyperFusionError: it cannot be built, or it differs.
    """
    source, plan = place / "model.onnx", place / "model.plan"
    plan.write_bytes(build("trt", source, options).content)
    source.unlink()
    _compare_plan(plan, ensemble, image, precision)


def _compare_plan(
    path: Path, ensemble: Ensemble, image: NDArray[np.float32], precision: str
) -> None:
    """Compare a TensorRT trunk, on the GPU that it was built for, with float64.

    Raises:
        HyperFusionError: a feature differs by more than the precision's tolerance of its scale.
    """
    trunk, boxes = ensemble.trunk, ensemble.boxes
    with torch.inference_mode():
        exact = run(trunk, {IMAGE: split_boxes(torch.from_numpy(image).double(), boxes)})
    made = TrtEngine(path, engine="trt").run(image, np.zeros((len(image), 0), np.float32))
    for name, feature in zip(trunk.outputs, exact, strict=True):
        if name not in made:  # the image itself
            continue
        wanted = join_boxes(feature, boxes).numpy()
        off = float(np.abs(made[name] - wanted).max() / max(np.abs(wanted).max(), 1e-12))
        if not off <= TOLERANCE[precision]:
            raise HyperFusionError(
                f"{path}: {name} differs from torch in float64 by {off:.2e} of its scale, more "
                f"than the tolerance {TOLERANCE[precision]:.0e}; nothing was exported",
                code="export-differs",
            )


def _invalid(message: str) -> HyperFusionError:
    return HyperFusionError(message, code="repository-invalid")


def read_config(path: Path) -> Any:
    """A config.pbtxt as a message of the published schema.

    Raises:
        HyperFusionError: it is not one: where and why.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), schema().ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise _invalid(f"{path}: not a model configuration: {error}") from None


def check_repository(folder: Path, name: str) -> None:
    """Check the models of `name` as the server does when it loads them.

    Every configuration fits the schema; the tensors that it names have the types and dimensions
    that the ONNX file has; every tensor of the ensemble is made before it is read.

    Raises:
        HyperFusionError: what does not fit.
    """
    whole = read_config(folder / name / CONFIG)
    pb = schema()
    known = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in whole.input}
    for step in whole.ensemble_scheduling.step:
        where = folder / step.model_name
        config = read_config(where / CONFIG)
        if config.name != step.model_name:
            raise _invalid(f"{where / CONFIG}: is named {config.name}")
        if config.max_batch_size < whole.max_batch_size:
            raise _invalid(f"{where / CONFIG}: takes smaller batches than the ensemble")
        path = where / VERSION / config.default_model_filename
        if not path.is_file():
            raise _invalid(f"{path}: is missing")
        if path.suffix == ".onnx":
            _check_onnx(path, config, pb)
        inputs = {t.name: (t.data_type, list(t.dims)) for t in config.input}
        outputs = {t.name: (t.data_type, list(t.dims)) for t in config.output}
        if set(step.input_map) != set(inputs):
            raise _invalid(f"{folder / name / CONFIG}: {step.model_name} reads other tensors")
        for inside, outside in step.input_map.items():
            if known.get(outside) != inputs[inside]:
                raise _invalid(
                    f"{folder / name / CONFIG}: {step.model_name} reads {outside!r}, which nothing "
                    "makes before it, or makes otherwise"
                )
        known |= {outside: outputs[inside] for inside, outside in step.output_map.items()}
    for tensor in whole.output:
        if known.get(tensor.name) != (tensor.data_type, list(tensor.dims)):
            raise _invalid(f"{folder / name / CONFIG}: nothing makes {tensor.name!r}")


def _check_onnx(path: Path, config: Any, pb: Any) -> None:
    import onnx
    from onnx import TensorProto

    kinds = {
        TensorProto.FLOAT: pb.TYPE_FP32,
        TensorProto.DOUBLE: pb.TYPE_FP64,
        TensorProto.STRING: pb.TYPE_STRING,
    }
    graph = onnx.load(path).graph
    for what, tensors, values in (
        ("inputs", config.input, graph.input),
        ("outputs", config.output, graph.output),
    ):
        written = {t.name: (t.data_type, list(t.dims)) for t in tensors}
        found = {}
        for value in values:
            of = value.type.tensor_type
            found[value.name] = (kinds[of.elem_type], [d.dim_value for d in of.shape.dim[1:]])
        if written != found:
            raise _invalid(f"{path}: its {what} are {found}, the configuration's {written}")

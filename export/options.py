"""The options of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hyperfusion_rt.config import Precision, Rule
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options
from hyperfusion_rt.runtime.engines.registry import DEFAULT_ENGINES, ENGINES, check_name
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions

Backend = Literal["onnx", "tensorrt"]
T = TypeVar("T")


def parse_batch(value: object) -> object:
    """(1, 8, 32), from `1:8:32`."""
    if not isinstance(value, str):
        return value
    try:
        low, usual, high = (int(part) for part in value.split(":"))
    except ValueError:
        raise ValueError("write it as SMALLEST:USUAL:LARGEST, such as 1:8:32") from None
    return low, usual, high


def _each_once(values: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


class ExportOptions(Options):
    """What an export writes, and how; see `hyperfusion_rt.export.export_run`.

    Raises:
        EngineError: there is no such engine.
        ConfigError: a value is out of range, or options do not go together.
    """

    engines: Annotated[tuple[str, ...], AfterValidator(_each_once)] = Field(
        DEFAULT_ENGINES,
        min_length=1,
        description="native, onnx, trt, trt-rtx or torch; repeatable.",
    )
    precision: Precision = Field(
        "fp32", description="Of the engines that have it; the others stay fp32."
    )
    rule: Rule | None = Field(
        None, description="What several members say together; default: as the run says."
    )
    batch: Annotated[tuple[int, int, int], BeforeValidator(parse_batch)] = Field(
        BuildOptions.batch,
        description="TensorRT, served models: smallest, usual and largest batch of cases.",
    )
    workspace: float = Field(
        BuildOptions.workspace, description="TensorRT: GiB that a layer may use."
    )
    capabilities: Annotated[tuple[int, ...], AfterValidator(_each_once)] = Field(
        BuildOptions.capabilities,
        description="trt-rtx: 80 for 8.0; repeatable.",
    )
    serve: Path | None = Field(
        None, description="Also write a model repository for NVIDIA Triton Inference Server."
    )
    backend: Backend = Field(
        "onnx", description="What runs the trunk there; tensorrt needs this machine's GPU."
    )
    calibration: Path | None = Field(
        None,
        description="Scans that nothing was learned from: how sure answers are is measured there, "
        "instead of the validation part. With `calibration_table`.",
    )
    calibration_table: Path | None = Field(None, description="Their table, with the truth.")
    no_training_hashes: bool = Field(
        False,
        description="Leave out the hashes by which hfrt infer and hfrt evaluate tell cases of the "
        "training.",
    )
    force: bool = Field(False, description="Replace what exists.")
    replace: bool = Field(
        False, description="Replace an artifact that exists, but no served models."
    )

    @model_validator(mode="after")
    def _check(self) -> ExportOptions:
        for engine in self.engines:
            check_name(engine)
        if not any(self.precision in ENGINES[engine].precisions for engine in self.engines):
            known = (f"{name} has {', '.join(ENGINES[name].precisions)}" for name in self.engines)
            raise ConfigError(
                f"`precision` {self.precision}: {'; '.join(known)}", code="precision-unsupported"
            )
        if (self.calibration is None) != (self.calibration_table is None):
            raise ConfigError(
                "`calibration` and `calibration_table` go together: give both",
                code="option-conflict",
            )
        if self.serve is None and self.backend != "onnx":
            raise ConfigError(
                f"`backend` {self.backend}: needs `serve` DIR", code="option-conflict"
            )
        self.build_options()
        return self

    def build_options(self) -> BuildOptions:
        """What TensorRT's builder needs of them.

        Raises:
            ConfigError: a value is out of range.
        """
        return BuildOptions(self.batch, self.workspace, self.capabilities)

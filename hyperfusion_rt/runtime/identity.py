"""What a prediction's numbers depend on besides scan and row: code, packages, processor."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import hyperfusion_rt
from hyperfusion_rt import _native
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.files import sha256
from hyperfusion_rt.machine import describe_machine, installed

# The packages that the numbers may depend on, by what uses them: everything, an engine, raw scans.
PACKAGES = {
    "all": ("numpy", "nibabel", "isal"),
    "onnx": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx"),
    "trt": ("tensorrt", "cuda-bindings"),
    "trt-rtx": ("tensorrt_rtx", "cuda-bindings"),
    "torch": ("torch",),
    "raw": ("pydicom", "scipy", "nilearn"),
}

# Every module that `runtime.predictor` and the engines can reach: the way from file to number. A
# test compares this list with the imports, so that a new module cannot be missing.
CODE = (
    "artifact.arrays",
    "artifact.calibration",
    "artifact.manifest",
    "artifact.operations",
    "artifact.plan",
    "artifact.population",
    "artifact.scan_reference",
    "artifact.table_summary",
    "artifact.typical_scans",
    "artifact.usual_errors",
    "artifact.voxels",
    "clock",
    "config",
    "config.augmentation",
    "config.base",
    "config.load",
    "config.merge",
    "config.network",
    "config.preprocessing",
    "config.presets",
    "config.study",
    "config.tabular",
    "config.training",
    "data.acquisition",
    "data.bids_columns",
    "data.bids_dataset",
    "data.bids_filter",
    "data.bids_name",
    "data.channels",
    "data.cohort",
    "data.column_map",
    "data.dicom",
    "data.encoder",
    "data.encoder_columns",
    "data.encoder_fit",
    "data.finding",
    "data.fingerprint",
    "data.id_match",
    "data.imports",
    "data.mni_template",
    "data.number_check",
    "data.other_files",
    "data.png",
    "data.raw.brain_mask",
    "data.raw.field",
    "data.raw.image",
    "data.raw.judge",
    "data.raw.landmarks",
    "data.raw.picture",
    "data.raw.pose",
    "data.raw.register",
    "data.raw.search",
    "data.raw.sidecar",
    "data.raw.template",
    "data.scan",
    "data.scan_check",
    "data.scan_figures",
    "data.scan_file",
    "data.scan_header",
    "data.scan_kind",
    "data.scan_search",
    "data.scan_space",
    "data.table_columns",
    "data.table_file",
    "data.table_index",
    "data.table_text",
    "data.volumes",
    "errors",
    "files",
    "kernels",
    "kernels.backend",
    "kernels.conv3d",
    "kernels.conv3d_block",
    "kernels.cpu.native",
    "kernels.cpu.plain",
    "kernels.cpu.tiles",
    "kernels.epilogue",
    "kernels.geometry",
    "kernels.gpu",
    "kernels.gpu.configs",
    "kernels.gpu.conv3d",
    "kernels.gpu.conv3d_block",
    "kernels.gpu.conv3d_tiles",
    "kernels.gpu.cost",
    "kernels.gpu.hyper_conv3d",
    "kernels.gpu.hyper_linear",
    "kernels.gpu.launch",
    "kernels.gpu.linear",
    "kernels.hyper_conv3d",
    "kernels.hyper_conv_transpose3d",
    "kernels.hyper_linear",
    "kernels.norm_relu",
    "kernels.ops",
    "kernels.weights",
    "machine",
    "metrics.bootstrap",
    "metrics.conformal",
    "metrics.groups",
    "models.combine",
    "options",
    "rules",
    "runtime.case_input",
    "runtime.certainty",
    "runtime.engines.choose",
    "runtime.engines.eager",
    "runtime.engines.gpu",
    "runtime.engines.native",
    "runtime.engines.ort",
    "runtime.engines.registry",
    "runtime.engines.trt",
    "runtime.engines.trt_build",
    "runtime.explain.answers",
    "runtime.explain.question",
    "runtime.explain.what_if",
    "runtime.feature_cache",
    "runtime.gather",
    "runtime.identity",
    "runtime.network",
    "runtime.options",
    "runtime.pipeline",
    "runtime.prediction",
    "runtime.predictor",
    "runtime.scan_features",
    "runtime.segmentation",
    "runtime.space",
    "runtime.verdict",
    "yaml_text",
)


def versions(*uses: str) -> dict[str, str]:
    """The installed ones of the `PACKAGES` of these uses; of all uses by default."""
    names = dict.fromkeys(name for use in uses or PACKAGES for name in PACKAGES.get(use, ()))
    return {name: version for name in names if (version := installed(name))}


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A hash of the compiled kernels and of the modules in `CODE`."""
    root = Path(hyperfusion_rt.__file__).parent
    digest = hashlib.sha256(sha256(Path(_native.__file__)).encode())
    for name in CODE:
        place = root.joinpath(*name.split("."))
        digest.update(sha256(place / "__init__.py" if place.is_dir() else f"{place}.py").encode())
    return digest.hexdigest()[:16]


def identity(artifact: Artifact, engine: str, source: str) -> dict[str, str]:
    """Same identity, same scan, same row: same bits."""
    packages = versions(engine, source)
    isa = os.environ.get("HFRT_ISA") or describe_machine()["instruction sets"]
    return {
        "artifact": artifact.manifest.checksum,
        "engine": engine,
        "engine_sha256": artifact.entry(engine).sha256,
        "instruction_sets": isa,
        "source": source,
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "provider": os.environ.get("HFRT_ONNX_PROVIDER", ""),
        "version": hyperfusion_rt.__version__,
        "code": code_digest(),
    }

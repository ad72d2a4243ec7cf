"""The ONNX Runtime engine, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import EngineError, MissingExtraError
from hyperfusion_rt.files import cache_folder, shown
from hyperfusion_rt.machine import usable_cores

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers. `plugin`: the package that brings it, if one does.

    Options: https://onnxruntime.ai/docs/execution-providers and
    https://nvidia.github.io/TensorRT-RTX-EP-ABI.
    """

    name: str
    device: str
    need: str
    options: dict[str, str] = field(default_factory=dict)
    cache: str = ""  # the option that names a folder to keep built engines in
    plugin: str = ""


PROVIDERS = {
    # TF32 would keep ten bits of every product.
    "cuda": Provider(
        "CUDAExecutionProvider",
        "cuda",
        "pip uninstall -y onnxruntime, then pip install 'hyperfusion_rt[gpu]'",
        {"use_tf32": "0"},
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "cuda",
        "pip uninstall -y onnxruntime, then pip install 'hyperfusion_rt[gpu]' tensorrt",
        {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
        cache="trt_engine_cache_path",
    ),
    "tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "cuda",
        "pip install onnxruntime-ep-nv-tensorrt-rtx",
        cache="nv_runtime_cache_path",
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
    ),
    "cpu": Provider("CPUExecutionProvider", "cpu", "pip install 'hyperfusion_rt[cpu]'"),
}


# Whose inputs stay on the device: the usual batch, the last one of a cohort, single cases.
_BATCHES = 4


class OnnxEngine:
    """Runs one ONNX file with ONNX Runtime; see `hyperfusion_rt.runtime.engines.choose.Engine`.

    Args:
        path: the file.
        threads: of the CPU; None uses every core that the process may use.
        provider: a name of `PROVIDERS`; None takes the environment's `HFRT_ONNX_PROVIDER`, or CUDA
            where onnxruntime-gpu offers it, or the CPU.
        bound: None keeps inputs and outputs in buffers on the device (IO binding) on a GPU only.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: the provider is not there, or cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        provider: str | None = None,
        bound: bool | None = None,
    ) -> None:
        try:
            import onnxruntime as ort

            ort.disable_telemetry_events()
        except ImportError:
            raise MissingExtraError("onnxruntime", "cpu", "the onnx engine") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Between two runs its threads would spin on cores that decoding, or another session, needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._ort = ort
        self.provider, found = _choose(ort, provider)
        settings = dict(found.options)
        if found.cache:
            folder = cache_folder() / f"onnxruntime-{self.provider}"
            with contextlib.suppress(OSError):  # without a cache it is only built again
                folder.mkdir(parents=True, exist_ok=True)
                settings[found.cache] = str(folder)
        # It cannot open a file whose name is not UTF-8.
        source = str(path) if shown(str(path)) == str(path) else path.read_bytes()
        try:
            if found.plugin:
                _add_plugin(ort, options, found, settings)
                self._session = ort.InferenceSession(source, options)
            else:
                wanted = [(found.name, settings), ("CPUExecutionProvider", {})]
                unique = wanted if found.device != "cpu" else wanted[:1]
                self._session = ort.InferenceSession(source, options, providers=unique)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EngineError(
                f"{path}: ONNX Runtime ({self.provider}) cannot load it: {reason}",
                code="engine-cannot-load",
            ) from None
        # ONNX Runtime itself falls back to the CPU and only logs it.
        if found.name not in self._session.get_providers():
            raise EngineError(
                f"{path}: ONNX Runtime offers {found.name} but cannot start it (is the CUDA that "
                "it needs installed?); see 'hfrt doctor', or set HFRT_ONNX_PROVIDER=cpu",
                code="engine-provider-unusable",
            )
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._device = found.device
        self._bound = found.device != "cpu" if bound is None else bound
        self._buffers: dict[int, tuple[Any, dict[str, Any]]] = {}  # by batch
        self._turn = threading.Lock()

    def run(self, image: Floats, tabular: Floats) -> dict[str, Floats]:
        """Run one batch: `image [B, N·C, D, H, W]`, `tabular [B, T]`; every output by its name."""
        return self.feed({"image": image, **_table(tabular)})

    def feed(self, values: dict[str, Floats]) -> dict[str, Floats]:
        """Run one batch of inputs by their names; every output by its name."""
        if self._bound:
            return self._run_bound(values)
        return dict(zip(self._outputs, self._session.run(None, values), strict=True))

    def _run_bound(self, feed: dict[str, Floats]) -> dict[str, Floats]:
        """The batch's inputs are copied into buffers that stay on the device."""
        batch = len(feed["image"])
        with self._turn:
            if batch not in self._buffers:
                if len(self._buffers) == _BATCHES:
                    del self._buffers[next(iter(self._buffers))]
                binding = self._session.io_binding()
                values = {
                    # A copy: on the CPU it would be the caller's own memory.
                    name: self._ort.OrtValue.ortvalue_from_numpy(array.copy(), self._device, 0)
                    for name, array in feed.items()
                }
                for name, value in values.items():
                    binding.bind_ortvalue_input(name, value)
                for name in self._outputs:
                    binding.bind_output(name, self._device, 0)
                self._buffers[batch] = binding, values
            binding, values = self._buffers[batch]
            for name, value in values.items():
                value.update_inplace(np.ascontiguousarray(feed[name], np.float32))
            self._session.run_with_iobinding(binding)
            return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))


class OnnxParts:
    """The trunk's and the head's files; see `choose.TrunkAndHead`."""

    def __init__(self, trunk: Path, head: Path, threads: int | None = None) -> None:
        # A head on vectors takes microseconds: a second thread would cost more than it does.
        self._trunk, self._head = OnnxEngine(trunk, threads), OnnxEngine(head, 1)

    def features(self, image: Floats) -> dict[str, Floats]:
        """What the head reads of `image [B, N·C, D, H, W]`, by name."""
        return self._trunk.feed({"image": image})

    def finish(self, features: dict[str, Floats], tabular: Floats) -> dict[str, Floats]:
        """Every output by its name, from `features` and `tabular [B, T]`."""
        return self._head.feed({**features, **_table(tabular)})


def _table(rows: Floats) -> dict[str, Floats]:
    """The input of that name; a network that reads images alone has none."""
    return {"tabular": rows} if rows.shape[1] else {}


def _choose(ort: Any, wanted: str | None) -> tuple[str, Provider]:
    wanted = wanted or os.environ.get("HFRT_ONNX_PROVIDER") or None
    available = ort.get_available_providers()
    if wanted is None:
        wanted = "cuda" if PROVIDERS["cuda"].name in available else "cpu"
    if wanted not in PROVIDERS:
        raise EngineError(
            f"there is no provider '{wanted}' (HFRT_ONNX_PROVIDER); choose from "
            f"{', '.join(PROVIDERS)}",
            code="engine-unknown",
        )
    found = PROVIDERS[wanted]
    if not found.plugin and found.name not in available:
        raise EngineError(
            f"this onnxruntime offers no {found.name}, only {', '.join(available)}; repair with: "
            f"{found.need}",
            code="engine-provider-unusable",
        )
    return wanted, found


def _add_plugin(ort: Any, options: Any, provider: Provider, settings: dict[str, str]) -> None:
    """Register the provider's library, once a process, and add its devices."""
    try:
        package = importlib.import_module(provider.plugin)
    except ImportError:
        raise EngineError(
            f"{provider.plugin} is not installed: {provider.need}", code="engine-provider-unusable"
        ) from None
    if provider.name not in _REGISTERED:
        ort.register_execution_provider_library(provider.name, package.get_library_path())
        _REGISTERED.add(provider.name)
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider.name]
    if not devices:
        raise EngineError(f"{provider.name} finds no GPU here", code="engine-provider-unusable")
    options.add_provider_for_devices(devices[:1], settings)


_REGISTERED: set[str] = set()

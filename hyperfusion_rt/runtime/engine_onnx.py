"""The ONNX Runtime engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import EngineError, MissingExtraError
from hyperfusion_rt.machine import usable_cores

Floats = NDArray[np.float32]


class OnnxEngine:
    """Runs one ONNX file with ONNX Runtime; see `hyperfusion_rt.runtime.engines.Engine`.

    CUDA is used where onnxruntime-gpu offers it, otherwise the CPU.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise MissingExtraError("onnxruntime", "cpu", "the onnx engine") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Between two runs its threads would spin on cores that decoding, or another session, needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        available = ort.get_available_providers()
        wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
        try:
            self._session = ort.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from None
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, image: Floats, tabular: Floats) -> dict[str, Floats]:
        """Run one batch: `image [B, N, D, H, W]`, `tabular [B, T]`; every output by its name."""
        feed = {"image": image, "tabular": tabular}
        return dict(zip(self._outputs, self._session.run(None, feed), strict=True))

"""The TensorRT engines, `trt` and `trt-rtx`, without torch.

A batch is cut into pieces of the profile's usual size, which two slots take in turn. A slot has a
stream, pinned host memory and device memory: while one computes, the other's piece is copied. What
a slot does for a given batch is captured once as a CUDA graph and replayed. Every graph has an
execution context of its own, whose state another shape would change; those of a slot, which never
run at the same time, share their scratch memory (TensorRT's developer guide, "CUDA Graphs").
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import EngineError, HyperFusionError
from hyperfusion_rt.files import cache_folder, replacing
from hyperfusion_rt.runtime.engines.gpu import Gpu, checked, cudart, find_gpu
from hyperfusion_rt.runtime.engines.trt_build import complaints, load_package, runtime_of

Floats = NDArray[np.float32]
SLOTS = 2


@dataclass
class _Buffer:
    """One input or output of a slot: pinned host memory, and device memory."""

    shape: tuple[int, ...]  # per case
    host: Floats  # [usual batch, *shape]
    host_pointer: int
    device_pointer: int

    def bytes_of(self, batch: int) -> int:
        return 4 * batch * int(np.prod(self.shape, dtype=np.int64))


@dataclass
class _Slot:
    stream: Any
    buffers: dict[str, _Buffer]
    # batch → its execution context, and its graph where it can be captured
    ready: dict[int, tuple[Any, Any | None]] = field(default_factory=dict)
    scratch: list[tuple[int, int]] = field(default_factory=list)  # (pointer, bytes), growing


class _Contexts:
    """Makes execution contexts whose scratch memory is given to them.

    TensorRT-RTX compiles kernels when a context first runs: all before the first result (a graph
    would replay the slower ones that stand in meanwhile), and kept for the next process.
    """

    def __init__(self, engine: Any, trt: Any) -> None:
        self._engine, self._trt = engine, trt
        self._how = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._cache: Any = None
        self._path = Path()

    def keep_compiled(self, content: bytes, gpu: Gpu) -> None:
        parts = [content, repr(gpu).encode(), str(self._trt.__version__).encode()]
        key = hashlib.sha256(b"".join(parts)).hexdigest()[:32]
        self._path = cache_folder() / "trt-rtx-kernels" / f"{key}.cache"
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._how)
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            self._cache.deserialize(self._path.read_bytes())
        config.set_runtime_cache(self._cache)
        self._how = config

    def create(self) -> Any:
        return self._engine.create_execution_context(self._how)

    def save(self) -> None:
        if self._cache is None:
            return
        # A folder that cannot be written only means that they are compiled again.
        with contextlib.suppress(HyperFusionError), replacing(self._path) as temporary:
            temporary.write_bytes(bytes(self._cache.serialize()))


class TrtEngine:
    """Runs one TensorRT engine on the first GPU; see `choose.Engine`.

    Args:
        path: an engine file of the package that its suffix names, `.trt` or `.trt-rtx`, or one
            whose `engine` is given.
        threads: not used.
        content: the file's bytes, if they were read already.

    Raises:
        MissingExtraError: the package or cuda-python is not installed.
        EngineError: there is no GPU, or the engine was built for another one.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        engine: str | None = None,
        content: bytes | None = None,
    ) -> None:
        self.name = engine or path.suffix.removeprefix(".")
        trt = load_package(self.name)
        self.gpu = find_gpu()
        self._rt = cudart()
        self._turn = threading.Lock()
        self._runtime = runtime_of(self.name, trt)
        content = path.read_bytes() if content is None else content
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{path}: {self.name} {trt.__version__} cannot load it on {self.gpu.name}: "
                f"{complaints(self.name)}",
                code="engine-cannot-load",
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [n for n in names if modes[n] == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if n not in self._inputs]
        shapes = {name: tuple(self._engine.get_tensor_shape(name))[1:] for name in names}
        least, usual, _ = self._engine.get_tensor_profile_shape(self._inputs[0], 0)
        self.least, self.usual = int(least[0]), int(usual[0])
        self._contexts = _Contexts(self._engine, trt)
        if self.name == "trt-rtx":
            checked(self._rt.cudaFree(0))  # the cache asks for a CUDA context
            self._contexts.keep_compiled(content, self.gpu)
        self._slots: list[_Slot] = []
        weakref.finalize(self, _release, self._rt, self._slots)
        for _ in range(SLOTS):
            # Apart from the default stream, whose use elsewhere would break a capture.
            stream = checked(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking))
            self._slots.append(_Slot(stream, {}))
            for name, shape in shapes.items():
                self._slots[-1].buffers[name] = self._buffer(shape)
        for slot in self._slots:  # contexts, memory and kernels are there, or an error says why not
            self._launch(slot, self.least)
            checked(self._rt.cudaStreamSynchronize(slot.stream))

    def _context(self, slot: _Slot, batch: int) -> Any:
        """An execution context for batches of `batch` cases in the memory of `slot`."""
        context = self._contexts.create()
        if context is None:
            raise EngineError(
                f"{self.name}: no execution context: {complaints(self.name)}",
                code="engine-cannot-load",
            )
        for name, buffer in slot.buffers.items():
            context.set_tensor_address(name, buffer.device_pointer)
        for name in self._inputs:
            context.set_input_shape(name, (batch, *slot.buffers[name].shape))
        need = int(context.update_device_memory_size_for_shapes())
        if need and (not slot.scratch or slot.scratch[-1][1] < need):
            # The smaller one stays: earlier graphs point to it.
            slot.scratch.append((int(checked(self._rt.cudaMalloc(need))), need))
        if need:
            context.set_device_memory(*slot.scratch[-1])
        return context

    def _buffer(self, shape: tuple[int, ...]) -> _Buffer:
        count = self.usual * int(np.prod(shape, dtype=np.int64))
        host = int(checked(self._rt.cudaHostAlloc(4 * count, self._rt.cudaHostAllocDefault)))
        device = int(checked(self._rt.cudaMalloc(4 * count)))
        memory = (ctypes.c_float * count).from_address(host)
        view = np.ctypeslib.as_array(memory).reshape(self.usual, *shape)
        return _Buffer(shape, view, host, device)

    def run(self, image: Floats, tabular: Floats) -> dict[str, Floats]:
        """Run one batch: `image [B, N·C, D, H, W]`, `tabular [B, T]`; every output by its name.

        Raises:
            EngineError: an input has another shape, or CUDA fails.
        """
        given = {"image": image, "tabular": tabular}
        first = self._slots[0].buffers
        for name in self._inputs:
            if given[name].shape[1:] != first[name].shape or len(given[name]) != len(image):
                raise EngineError(
                    f"the network's {name} is [B, {', '.join(map(str, first[name].shape))}], but "
                    f"it was given an array of shape {given[name].shape}",
                    code="engine-wrong-input",
                )
        made = {
            name: np.empty((len(image), *first[name].shape), np.float32) for name in self._outputs
        }
        with self._turn:
            try:
                self._run(given, made)
            except BaseException:
                for slot in self._slots:  # nothing may still read the buffers
                    self._rt.cudaStreamSynchronize(slot.stream)
                raise
        return made

    def _run(self, given: dict[str, Floats], made: dict[str, Floats]) -> None:
        waiting: list[tuple[_Slot, int, int]] = []
        count = len(given["image"])
        for turn, start in enumerate(range(0, count, self.usual)):
            if len(waiting) == SLOTS:
                self._collect(*waiting.pop(0), made)
            slot, stop = self._slots[turn % SLOTS], min(start + self.usual, count)
            for name in self._inputs:
                slot.buffers[name].host[: stop - start] = given[name][start:stop]
            self._launch(slot, max(stop - start, self.least))
            waiting.append((slot, start, stop))
        for item in waiting:
            self._collect(*item, made)

    def _collect(self, slot: _Slot, start: int, stop: int, made: dict[str, Floats]) -> None:
        checked(self._rt.cudaStreamSynchronize(slot.stream))
        for name in self._outputs:
            made[name][start:stop] = slot.buffers[name].host[: stop - start]

    def _launch(self, slot: _Slot, batch: int) -> None:
        if batch not in slot.ready:
            context = self._context(slot, batch)
            # Once without capture: what is compiled or allocated lazily, is now.
            self._enqueue(slot, context, batch)
            checked(self._rt.cudaStreamSynchronize(slot.stream))
            slot.ready[batch] = context, self._captured(slot, context, batch)
            self._contexts.save()
        context, graph = slot.ready[batch]
        if graph is None:
            self._enqueue(slot, context, batch)
        else:
            checked(self._rt.cudaGraphLaunch(graph, slot.stream))

    def _captured(self, slot: _Slot, context: Any, batch: int) -> Any | None:
        """What `_enqueue` does as a graph; None where it cannot be captured."""
        rt = self._rt
        capturable = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX has it
        if capturable is not None and not capturable(int(slot.stream)):
            return None
        alone = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(rt.cudaStreamBeginCapture(slot.stream, alone))
        complete = False
        with contextlib.suppress(EngineError):
            self._enqueue(slot, context, batch)
            complete = True
        status, graph = rt.cudaStreamEndCapture(slot.stream)
        if int(status) != 0:
            return None
        try:
            return checked(rt.cudaGraphInstantiate(graph, 0)) if complete else None
        finally:
            rt.cudaGraphDestroy(graph)

    def _enqueue(self, slot: _Slot, context: Any, batch: int) -> None:
        kind = self._rt.cudaMemcpyKind
        self._copy(slot, self._inputs, batch, kind.cudaMemcpyHostToDevice)
        if not context.execute_async_v3(int(slot.stream)):
            raise EngineError(
                f"{self.name}: a batch of {batch} failed: {complaints(self.name)}",
                code="gpu-failed",
            )
        self._copy(slot, self._outputs, batch, kind.cudaMemcpyDeviceToHost)

    def _copy(self, slot: _Slot, names: Sequence[str], batch: int, kind: Any) -> None:
        to_device = kind == self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        for name in names:
            buffer = slot.buffers[name]
            ends = buffer.host_pointer, buffer.device_pointer
            source, target = ends if to_device else ends[::-1]
            checked(
                self._rt.cudaMemcpyAsync(target, source, buffer.bytes_of(batch), kind, slot.stream)
            )


def _release(rt: Any, slots: list[_Slot]) -> None:
    """Give everything back; at the end of the process CUDA may be gone, and nothing is checked."""
    for slot in slots:
        rt.cudaStreamSynchronize(slot.stream)
        for _, graph in slot.ready.values():
            if graph is not None:
                rt.cudaGraphExecDestroy(graph)
        slot.ready.clear()
        for buffer in slot.buffers.values():
            rt.cudaFreeHost(buffer.host_pointer)
            rt.cudaFree(buffer.device_pointer)
        for pointer, _ in slot.scratch:
            rt.cudaFree(pointer)
        rt.cudaStreamDestroy(slot.stream)

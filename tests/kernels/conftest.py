"""Triton's interpreter for the kernels' tests."""

import importlib.util
from pathlib import Path

import pytest
import torch

from .oracle import HUGE


@pytest.fixture
def interpreted(monkeypatch):
    """CPU tensors go to Triton; huge blocks; memory that nobody wrote is NaN."""
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are NOT checked")
    from hyperfusion_rt.kernels import backend
    from hyperfusion_rt.kernels.gpu import configs

    monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu", "cuda"})
    for name, tile in HUGE.items():
        monkeypatch.setattr(
            configs, name, dict.fromkeys(getattr(configs, name), configs.Config(*tile))
        )
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def mutated(tmp_path):
    """`mutated(module, old, new)`: the module with one bug, `old` replaced in its source."""

    def make(module, old, new):
        source = Path(module.__file__).read_text()
        assert old in source
        path = tmp_path / "mutated.py"
        path.write_text(source.replace(old, new))
        spec = importlib.util.spec_from_file_location("mutated", path)
        changed = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(changed)
        return changed

    return make

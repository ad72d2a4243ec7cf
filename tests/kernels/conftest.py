"""Triton's interpreter for the kernels' tests."""

import pytest
import torch


@pytest.fixture
def interpreted(monkeypatch):
    """CPU tensors go to Triton; huge blocks; memory that nobody wrote is NaN."""
    from hyperfusion_rt.kernels import backend
    from hyperfusion_rt.kernels.gpu import configs

    monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu", "cuda"})
    huge = configs.Config(2048, 64, 32, 4, 1, 255)
    monkeypatch.setattr(configs, "CONV3D", dict.fromkeys(configs.CONV3D, huge))
    tiles = configs.Config(2048, 64, 64, 4, 1, 255)
    monkeypatch.setattr(configs, "WEIGHT_GRADIENT", dict.fromkeys(configs.WEIGHT_GRADIENT, tiles))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)

"""Training on a real GPU: `make gpu-test`."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU: training on CUDA is NOT checked", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter is on: use `make gpu-test`", allow_module_level=True)

from hyperfusion_rt.config import load_config
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.train import train

pytestmark = pytest.mark.gpu
SMALL = {
    "network": {"features": 4},
    "training": {"epochs": 3, "embedding_epochs": 3, "members": 1, "batch_size": 8, "parts": 5},
}


def losses(cohort, name, device, devices=None, **training):
    overrides = SMALL | {"training": SMALL["training"] | training}
    run = train(
        load_config(cohort / "hfrt.yaml", overrides),
        cohort,
        name=name,
        options=TrainOptions(device=device, devices=devices),
    )
    lines = (run.member(0).folder / "history.csv").read_text().splitlines()
    column = lines[0].split(",").index("train_loss")
    return [float(line.split(",")[column]) for line in lines[1:]]


def test_the_gpu_trains_as_the_cpu_does(session_cohort):
    """Dropout draws other numbers there, so only roughly."""
    expected = losses(session_cohort, "on-cpu", "cpu")
    for name, options in {
        "plain": {"amp": False},
        "amp": {},
        "graph": {"cuda_graph": True},
    }.items():
        found = losses(session_cohort, name, "cuda", **options)
        assert found == pytest.approx(expected, rel=0.3)


def test_a_captured_step_is_the_step(session_cohort):
    plain = losses(session_cohort, "step", "cuda", amp=False)
    captured = losses(session_cohort, "captured", "cuda", amp=False, cuda_graph=True)
    assert captured == pytest.approx(plain, rel=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: NCCL is NOT checked")
@pytest.mark.parametrize("options", [{"amp": False}, {}, {"amp": False, "cuda_graph": True}])
def test_two_gpus_learn_as_one(session_cohort, options):
    """Dropout's numbers are drawn for the whole batch in each process, the same as for one."""
    name = "-".join(["gpus", *options])
    alone = losses(session_cohort, f"{name}-1", "cuda", devices=1, **options)
    together = losses(session_cohort, f"{name}-2", "cuda", devices=2, **options)
    # Mixed precision rounds to 8 bits.
    assert together == pytest.approx(alone, rel=1e-3 if options else 5e-2)

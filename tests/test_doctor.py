"""What `hfrt doctor` concludes from what a machine has."""

import json
import re
import subprocess
import sys

import pytest

from hyperfusion_rt.doctor import Facts, _cudnn, diagnose, look

GPU = Facts(
    native=("avx512",),
    torch="2.13.0",
    cuda="13.0",
    driver="580.65.06",
    devices=("NVIDIA A100-SXM4-40GB",),
    capability=(8, 0),
    cudnn=(9, 15, 1),
    triton="3.7.1",
    onnxruntime=("onnxruntime-gpu 1.23",),
    providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
)


def test_a_good_machine_has_no_warnings():
    found = diagnose(GPU)
    assert found.warnings == []
    assert {name: usable for name, usable, _ in found.engines} == {
        "native": True, "onnx": True, "torch": True, "trt": False, "trt-rtx": False,
    }  # fmt: skip
    assert ("torch", True, "CUDA, fused Triton kernels") in found.engines
    assert ("torch", "2.13.0 (built for CUDA 13.0, cuDNN 9.15.1)") in found.rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "2.9.1+cu128"}, "torch 2.9.1+cu128: 3D convolutions regressed"),
        ({"cudnn": (9, 10, 2)}, "cuDNN 9.10.2: bfloat16 3D convolutions are slow before 9.15"),
        ({"capability": (7, 5)}, "compute capability 7.5"),
        ({"devices": (), "capability": None}, "sees no GPU"),
        ({"triton": None}, "Triton is missing"),
        ({"onnxruntime": ("onnxruntime 1.2", "onnxruntime-gpu 1.2")}, "overwrite each other"),
        ({"providers": ("CPUExecutionProvider",)}, "offers no CUDA"),
        ({"problems": ("torch is installed but cannot be imported: x",)}, "cannot be imported"),
    ],
)
def test_what_is_known_to_be_bad_is_said(change, message):
    (found,) = diagnose(Facts(**{**vars(GPU), **change})).warnings
    assert message in found


@pytest.mark.parametrize(
    ("change", "name", "usable", "note"),
    [
        ({"tensorrt": "10.9"}, "trt", False, r"needs cuda-python: pip install .*\[trt\]"),
        ({"tensorrt": "10.9", "cuda_python": "13.0"}, "trt", True, "tensorrt 10.9, driver 580"),
        ({"tensorrt": "10.9", "driver": None}, "trt", False, "needs a GPU to build and to run"),
        ({"tensorrt_rtx": "1.2", "driver": None}, "trt-rtx", False, "builds engines here"),
        ({"tensorrt_rtx": "1.2", "cuda_python": "13.0"}, "trt-rtx", True, "driver 580"),
        ({}, "trt-rtx", False, r"tensorrt_rtx is missing: pip install .*\[trt-rtx\]"),
        ({}, "onnx", True, "CUDA; HFRT_ONNX_PROVIDER may be cpu"),
        ({"providers": ("CPUExecutionProvider",)}, "onnx", True, "^CPU$"),
        ({"provider": "cpu"}, "onnx", True, "^cpu, as HFRT_ONNX_PROVIDER says"),
        ({"provider": "abacus"}, "onnx", False, "HFRT_ONNX_PROVIDER=abacus is not here: unset it"),
        ({"provider": "tensorrt"}, "onnx", False, "HFRT_ONNX_PROVIDER=tensorrt is not here"),
    ],
)
def test_engines_on_a_gpu(change, name, usable, note):
    rows = diagnose(Facts(**{**vars(GPU), **change})).engines
    (found,) = [row for row in rows if row[0] == name]
    assert found[1] is usable
    assert re.search(note, found[2])


def test_without_anything_it_says_what_to_install():
    engines = {name: (usable, note) for name, usable, note in diagnose(Facts()).engines}
    assert not any(usable for usable, _ in engines.values())
    assert "reinstall" in engines["native"][1]
    assert "hyperfusion_rt[cpu]" in engines["onnx"][1]
    assert "hyperfusion_rt[train]" in engines["torch"][1]
    old = {n: note for n, _, note in diagnose(Facts(native=())).engines}
    assert "AVX2" in old["native"]


def test_version_numbers():
    assert _cudnn(91002) == (9, 10, 2)
    assert _cudnn(91501) == (9, 15, 1)
    assert _cudnn(8902) == (8, 9, 2)
    assert _cudnn(None) is None


def test_this_machine(hfrt, tmp_path):
    status, out, _ = hfrt(tmp_path, "doctor", "--json")
    content = json.loads(out)
    assert status == 0
    assert content["machine"]["native kernels"].split(", ") == list(look().native)
    assert next(e["engine"] for e in content["engines"] if e["usable"]) == "native"
    status, out, _ = hfrt(tmp_path, "doctor")
    assert status == 0
    assert "Engines" in out
    if "tensorrt is missing" in out:
        assert "pip install 'hyperfusion_rt[trt]'" in out


def test_it_works_where_torch_is_broken():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from hyperfusion_rt.doctor import diagnose\n"
        "print(*diagnose().warnings)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch is installed but cannot be imported" in done.stdout

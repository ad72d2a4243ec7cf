"""The errors of the Triton kernels in the interpreter, as a table: python tests/kernels/errors.py

Written to benchmarks/gpu_interpreter.md. Nothing runs on a GPU.
"""

import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
from oracle import (
    BLOCK_CASES,
    CASES,
    HUGE,
    LINEAR_CASES,
    MORE,
    check_block,
    check_conv,
    check_linear,
)

from hyperfusion_rt.kernels import backend
from hyperfusion_rt.kernels.gpu import configs

TYPES = {"fp32": torch.float32, "fp16": torch.float16}
OUTPUTS = ["y", "dx", "de", "dG", "dh", "dg0", "dh0"]


def rows():
    """One row per op, shape, dtype and strategy."""
    for case in CASES + MORE:
        kernel, stride, padding, dilation, groups, batch, k, cin, cout = case
        text = f"{cin} to {cout}, {kernel}, stride {stride}, padding {padding}"
        text += f", dilation {dilation}, groups {groups}, batch {batch}, K = {k}"
        for name, dtype in TYPES.items():
            for strategy in ("generate", "write"):
                found = check_conv(case, dtype, strategy=strategy, keep=strategy == "generate")
                yield "hyper_conv3d", text, name, strategy, found
    for case in LINEAR_CASES:
        text = "{2} to {3}, batch {0}, K = {1}".format(*case)
        for name, dtype in TYPES.items():
            yield "hyper_linear", text, name, "", check_linear(case, dtype)
    for case in BLOCK_CASES:
        kernel, stride, padding, groups, shared, cin, cout, pool, *_ = case
        text = f"{cin} to {cout}, kernel {kernel}, stride {stride}, padding {padding}"
        text += f", {groups} members" + (" of one volume" if shared else "")
        text += ", pooled" if pool else ""
        for name, dtype in TYPES.items():
            yield "conv3d_block", text, name, "", check_block(case, dtype)


def main():
    backend.TRITON_DEVICES.add("cpu")
    for name, tile in HUGE.items():
        setattr(configs, name, dict.fromkeys(getattr(configs, name), configs.Config(*tile)))
    head = ["op", "shape", "dtype", "strategy", *OUTPUTS]
    lines = [head, ["---"] * len(head)]
    for *of, found in rows():
        lines.append([*of, *(f"{found[n]:.0e}" if n in found else "" for n in OUTPUTS)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path = Path(__file__).parents[2] / "benchmarks" / "gpu_interpreter.md"
    path.write_text(
        f"""# The GPU kernels in Triton's interpreter

Written by `python tests/kernels/errors.py` with Triton {triton.__version__} and torch
{torch.__version__}: the arithmetic on CPU tensors, **not on a GPU**. The largest difference
from the float64 reference, over the largest value, of the output and of each gradient. float16:
numbers of 11 bits, rounding 5e-4. bfloat16 and TF32 cannot be shown here.

{table}
"""
    )
    print(f"{len(lines) - 2} rows in {path}")


if __name__ == "__main__":
    main()

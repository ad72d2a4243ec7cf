"""What an operation costs: multiplications and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.operations import TENSORS, AnyOperation, Conv, HyperConv
from hyperfusion_rt.export.fuse.draft import CONVS, TRANSPOSED, Draft
from hyperfusion_rt.export.ir.graph import Shape


def gflop(draft: Draft) -> float:
    """Of the direct algorithm: two for each weight, and in a convolution for each voxel."""
    op, arrays = draft.node.op, draft.node.arrays
    if op in ("linear", "hyper_linear"):
        return 2e-9 * arrays["weight"].size
    if op not in CONVS + TRANSPOSED:
        return 0.0
    # Backwards, a weight meets every voxel that is read.
    work = 2e-9 * arrays["weight"].size * draft.voxels
    if op.startswith("hyper"):
        work /= arrays["weight"].shape[0]
    if draft.shortcut is not None:
        work += 2e-9 * draft.shortcut.arrays["weight"].size * draft.voxels
    return work


def megabytes(
    op: AnyOperation,
    shapes: Mapping[str, Shape],
    tensors: Mapping[str, NDArray[np.float32]],
    precision: str,
) -> float:
    """Of what it reads and makes, as stored, and of its weights in float32."""
    stored = 2 if precision == "bf16" else 4
    moved = [*(shapes[value] for value in op.reads), *op.makes.values()]
    size = sum(math.prod(s) * (stored if len(s) == 4 else 4) for s in moved)
    held = [name for role, name in vars(op).items() if role in TENSORS and name is not None]
    if isinstance(op, Conv | HyperConv) and op.shortcut is not None:
        held.append(op.shortcut.weight)
    return 1e-6 * (size + sum(tensors[name].nbytes for name in held))

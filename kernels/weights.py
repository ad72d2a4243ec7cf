"""What the hyper ops share: their arguments, and weights made from a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def check_devices(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Raise a ValueError where a tensor is not where x is: a kernel would read another's memory."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{op}: x is on {x.device}, but {name} is on {other.device}")


def check(
    op: str,
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
) -> None:
    """Raise a ValueError where shapes do not fit together; `op` names the op in the message."""
    dims = {"hyper_conv3d": (5, 6), "hyper_linear": (2, 3)}[op]
    for name, tensor, expected in (
        ("x", x, dims[0]),
        ("condition", condition, 2),
        ("G", G, dims[1]),
        ("h", h, 2),
    ):
        if tensor.dim() != expected:
            raise ValueError(
                f"{op}: {name} has shape {tuple(tensor.shape)}, but needs {expected} dimensions"
            )
    check_devices(op, x, condition=condition, G=G, h=h, g0=g0, h0=h0)
    if G.shape[0] != condition.shape[1] or h.shape[0] != condition.shape[1]:
        raise ValueError(
            f"{op}: condition has K = {condition.shape[1]}, but G has {G.shape[0]} and h has "
            f"{h.shape[0]} generators"
        )
    if h.shape[1] != G.shape[1]:
        raise ValueError(f"{op}: G makes {G.shape[1]} channels, but h makes {h.shape[1]}")
    if g0 is not None and g0.shape != G.shape[1:]:
        raise ValueError(f"{op}: g0 has shape {tuple(g0.shape)}, but G needs {tuple(G.shape[1:])}")
    if h0 is not None and h0.shape != h.shape[1:]:
        raise ValueError(f"{op}: h0 has shape {tuple(h0.shape)}, but h needs {tuple(h.shape[1:])}")
    if x.shape[0] != condition.shape[0]:
        raise ValueError(f"{op}: {x.shape[0]} samples in x, but {condition.shape[0]} in condition")


def generate(condition: Tensor, generator: Tensor, constant: Tensor | None) -> Tensor:
    """`constant + Σ_k condition[b, k] generator[k]`, for all b: `[B, ...]`."""
    flat = generator.flatten(1)
    if constant is None:
        made = condition @ flat
    else:
        made = torch.addmm(constant.flatten(), condition, flat)
    return made.view(-1, *generator.shape[1:])


def join_samples(
    op: Callable[..., Tensor],
    info: Any,
    dims: tuple[Any, ...],
    arguments: tuple[Any, ...],
    of_samples: tuple[int, ...],
) -> tuple[Tensor, int]:
    """The vmap rule of an op whose arguments `of_samples` have a batch axis in front.

    Samples under vmap join the batch; weights under vmap are one call each.
    """
    count = info.batch_size
    mapped = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and dims[i] is not None]
    if all(i in of_samples for i in mapped):
        joined = list(arguments)
        for i in of_samples:
            t = joined[i] if i < len(joined) else None
            if t is not None:
                t = t.movedim(dims[i], 0) if i in mapped else t.expand(count, *t.shape)
                joined[i] = t.flatten(0, 1)
        return op(*joined).unflatten(0, (count, -1)), 0
    each = [
        op(*(a.select(dims[i], v) if i in mapped else a for i, a in enumerate(arguments)))
        for v in range(count)
    ]
    return torch.stack(each), 0

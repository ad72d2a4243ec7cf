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
    groups: int | None = None,
) -> None:
    """Raise a ValueError where shapes do not fit together; `op` names the op in the message.

    `groups`: of a transposed convolution, whose G is `[K, Cin, Cout / groups, ...]`.
    """
    dims = (2, 3) if op == "hyper_linear" else (5, 6)
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
    made = G.shape[1] if groups is None else G.shape[2] * groups
    if h.shape[1] != made:
        raise ValueError(f"{op}: G makes {made} channels, but h makes {h.shape[1]}")
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


def stack(condition: Tensor, G: Tensor, g0: Tensor | None) -> tuple[Tensor, Tensor]:
    """`ẽ = [1, e] [B, K + 1]` and `G̃ = [g0, G] [K + 1, ...]`; without g0 the two as they are."""
    if g0 is None:
        return condition, G
    return torch.cat([torch.ones_like(condition[:, :1]), condition], 1), torch.cat([g0[None], G])


def mix(y: Tensor, weights: Tensor, groups: int) -> Tensor:
    """`Σ_k ẽ[b, k] y[b, k]` of a convolution whose channels are ordered group, k, channel."""
    parts = y.unflatten(1, (groups, weights.shape[1], -1))
    return torch.einsum("bgkcdhw,bk->bgcdhw", parts, weights).flatten(1, 2)


def generator_gradients(
    own: Tensor, dbeta: Tensor, condition: Tensor, G: Tensor, h: Tensor
) -> list[Tensor]:
    """The gradients of (e, G, h, g0, h0), from those of each sample's weights and bias.

    `own [B, number of weights]`, `dbeta [B, Cout]`.
    """
    return [
        own @ G.flatten(1).T + dbeta @ h.T,
        (condition.T @ own).view_as(G),
        condition.T @ dbeta,
        own.sum(0).view(G.shape[1:]),
        dbeta.sum(0),
    ]


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

"""What members and boxes say together, in torch; `hyperfusion_rt.rules` defines the rules."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperfusion_rt.config import Rule


def combine_outputs(raw: Tensor, members: int, boxes: int, classes: bool, rule: Rule) -> Tensor:
    """Raw outputs `[B, M·N·C]` of M members on N boxes → `[B, C]`, in their dtype.

    `classes`: outputs are logits and the result is probabilities; otherwise numbers.
    """
    each = raw.view(len(raw), members, boxes, -1)
    each = (each.softmax(-1) if classes else each).mean(2)
    if rule == "mean":
        return each.mean(1)
    first = each.argmax(-1, keepdim=True)
    others = each.scatter(-1, first, 0.0)
    # In float32, p log p of a p near 1 has no digits left: that term is made of the others' sum.
    rest = others.sum(-1)
    entropy: Tensor = torch.special.entr(others).sum(-1) - (1 - rest) * torch.log1p(-rest)
    weights = 1 / entropy.clamp_min(1e-6)
    if rule == "most_confident":
        return each[torch.arange(len(each), device=each.device), weights.argmax(1)]
    if rule == "weighted_voting":
        each = torch.zeros_like(each).scatter(-1, first, 1.0)
    return torch.einsum("bm,bmc->bc", weights, each) / weights.sum(1, keepdim=True)

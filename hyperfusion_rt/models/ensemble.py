"""What members and boxes say together, in torch; `hyperfusion_rt.ensemble` defines the rules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    safe = each.clamp(1e-12, 1.0)
    weights = 1 / (-(safe * safe.log()).sum(-1)).clamp_min(1e-6)
    if rule == "most_confident":
        return each[torch.arange(len(each), device=each.device), weights.argmax(1)]
    if rule == "weighted_voting":
        each = F.one_hot(each.argmax(-1), each.shape[-1]).to(each)
    return torch.einsum("bm,bmc->bc", weights, each) / weights.sum(1, keepdim=True)

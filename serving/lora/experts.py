"""A layer's routed experts where tokens have adapters: what is added comes before the activation.

Pairs of token and expert are sorted by expert, and by adapter within one. The base product goes
over experts; adapters' products over the same order, each (expert, adapter) being a group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from serving.lora.costs import FormCosts, Group
from serving.lora.packed import Packed, padded_product
from serving.lora.plan import Padded, Plan, Segment
from serving.lora.slots import Place

DOWN = "down_proj"


def up_parameter(module: Any) -> str:
    """The parameter of an experts module that comes before the activation."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def adapted_experts(
    module: Any,
    x_TD: torch.Tensor,
    top_k_index_TK: torch.Tensor,
    top_k_weights_TK: torch.Tensor,
    plan: Plan,
    packed: dict[str, Packed],
    costs: FormCosts,
) -> torch.Tensor:
    """``[T, D]``: each token's weighted sum over its experts. ``packed``: by parameter's name."""
    T, K = top_k_index_TK.shape
    num_places = len(plan.places) + 1
    key_R = (top_k_index_TK * num_places + plan.place_T[:, None]).flatten()
    key_R, order_R = key_R.sort(stable=True)
    expert_R = key_R // num_places
    groups = expert_groups(key_R, plan, costs)
    ends_E = torch.bincount(expert_R, minlength=int(module.num_experts)).cumsum(0).int()

    def product(x_RI: torch.Tensor, name: str) -> torch.Tensor:
        weight = getattr(module, name)
        weight_EIO = weight if module.is_transposed else weight.transpose(1, 2)
        y_RO = F.grouped_mm(x_RI, weight_EIO, offs=ends_E)
        if module.has_bias:
            y_RO += getattr(module, f"{name}_bias")[expert_R]
        if name in packed:
            add_changes(groups, packed[name], x_RI, y_RO)
        return y_RO

    up_RF = product(x_TD[order_R // K], up_parameter(module))
    act_RF = module._apply_gate(up_RF) if module.has_gate else module.act_fn(up_RF)
    y_RD = product(act_RF, DOWN)
    if module.has_post_expert_norm:
        y_RD = module.post_expert_norm(y_RD)
    y_RD = y_RD * top_k_weights_TK.flatten()[order_R, None]
    of_pair_RD = torch.empty_like(y_RD)
    of_pair_RD[order_R] = y_RD
    out_TD: torch.Tensor = of_pair_RD.view(T, K, -1).sum(1)
    return out_TD.to(x_TD.dtype)


Groups = tuple[list[tuple[int, Segment]], list[tuple[torch.Tensor, Padded, torch.Tensor]]]


def expert_groups(key_R: torch.Tensor, plan: Plan, costs: FormCosts) -> Groups:
    """Segments, each with its expert; and of padded ones the pairs, the slots, the experts."""
    num_places = len(plan.places) + 1
    keys, counts = torch.unique_consecutive(key_R, return_counts=True)
    found: list[tuple[int, Place, int, int]] = []
    start = 0
    for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
        expert, number = divmod(key, num_places)
        if number:
            found.append((expert, plan.places[number - 1], start, start + count))
        start += count
    alone = costs.alone([Group(stop - start, place.width) for _, place, start, stop in found])
    segments, together = [], []
    for each, own in zip(found, alone, strict=True):
        expert, place, start, stop = each
        if own:
            segments.append((expert, Segment(place, start, stop, slice(start, stop))))
        else:
            together.append(each)
    padded = []
    for width in sorted({place.width for _, place, _, _ in together}):
        pairs: list[int] = []
        slots: list[int] = []
        experts: list[int] = []
        for expert, place, start, stop in together:
            if place.width == width:
                pairs += range(start, stop)
                slots += [place.index] * (stop - start)
                experts += [expert] * (stop - start)
        pair_R, slot_R, expert_R = (
            torch.tensor(each, device=key_R.device) for each in (pairs, slots, experts)
        )
        padded.append((pair_R, Padded(width, slot_R, 0, len(pairs)), expert_R))
    return segments, padded


def add_changes(groups: Groups, packed: Packed, x_RI: torch.Tensor, y_RO: torch.Tensor) -> None:
    """Add to pairs' outputs what their adapters make of ``x_RI``."""
    segments, padded = groups
    for expert, segment in segments:
        place = segment.place
        rows = slice(segment.start, segment.stop)
        low_Rr = x_RI[rows] @ packed.a_EPI[expert, place.start : place.stop].t()
        y_RO[rows].addmm_(low_Rr, packed.b_EPO[expert, place.start : place.stop])
    for pair_R, group, expert_R in padded:
        per_expert = packed.a_EPI.shape[1] // group.width
        slot_R = group.slot_R + expert_R * per_expert
        change_RO = padded_product(
            x_RI[pair_R],
            packed.a_EPI.flatten(0, 1),
            packed.b_EPO.flatten(0, 1),
            Padded(group.width, slot_R, 0, len(slot_R)),
        )
        y_RO.index_add_(0, pair_R, change_RO)

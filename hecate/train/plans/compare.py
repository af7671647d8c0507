"""Recorded loads under several policies, and what each policy made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hecate.config import nearest_name, override_config
from hecate.errors import ConfigError
from hecate.fssdp.choice import POLICY_NAMES, policy_of
from hecate.fssdp.measure import Costs
from hecate.planner.load import Counts
from hecate.planner.replay import ReplayedStep, replay
from hecate.train.loads import LoadsHeader, RecordedLoads, read_loads
from hecate.train.plans.settings import PlanConfig, first_owners, node_of_each, replay_costs

Ratios = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PolicyReplay:
    """One policy's steps; what copies move in each, over all ranks: weights there, gradients back.

    ``gathered_bytes[i]``, ``reduced_bytes[i]``: of step i.
    """

    policy: str
    steps: tuple[ReplayedStep, ...]
    gathered_bytes: tuple[int, ...]
    reduced_bytes: tuple[int, ...]

    def imbalance_before(self) -> Ratios:
        """Max over mean of the ranks by owners alone, ``[steps, Y]``."""
        return np.array([max_over_mean(step.owned_YW) for step in self.steps])

    def imbalance_after(self) -> Ratios:
        """Max over mean of the slots that ranks computed, ``[steps, Y]``."""
        return np.array([max_over_mean(step.computed_YW) for step in self.steps])

    def waits_s(self) -> Ratios:
        """Seconds that ranks wait on average for the busiest, by the cost model, ``[steps, Y]``."""
        return np.array([step.waits_Y for step in self.steps])

    def idle_copies(self) -> Counts:
        """Planned copies that computed nothing, ``[steps, Y]``."""
        return np.array([[layer.idle_copies for layer in step.missed] for step in self.steps])

    def missed_experts(self) -> Counts:
        """Experts that lacked a planned copy, ``[steps, Y]``."""
        return np.array([[layer.missed_experts for layer in step.missed] for step in self.steps])

    def figures(self) -> dict[str, float]:
        """One number for each question; see ``FIGURES``."""
        before, after = self.imbalance_before(), self.imbalance_after()
        informed = np.array([max_over_mean(step.informed_YW) for step in self.steps])
        return {
            "imbalance_before_mean": float(before.mean()),
            "imbalance_before_max": float(before.max()),
            "imbalance_after_mean": float(after.mean()),
            "imbalance_after_max": float(after.max()),
            "mispredicted_imbalance": float((after - informed).mean()),
            "idle_copies_per_step": float(self.idle_copies().sum(1).mean()),
            "missed_experts_per_step": float(self.missed_experts().sum(1).mean()),
            "gathered_bytes_per_step": float(np.mean(self.gathered_bytes)),
            "experts_moved": float(sum(step.moves for step in self.steps)),
            "wait_s_per_step": float(self.waits_s().sum(1).mean()),
            "balanced_share": sum(step.ceiling_s for step in self.steps)
            / max(1e-30, sum(step.experts_s for step in self.steps)),
        }


FIGURES = {
    "imbalance_before_mean": "before: mean",
    "imbalance_before_max": "max",
    "imbalance_after_mean": "after: mean",
    "imbalance_after_max": "max",
    "mispredicted_imbalance": "mispredicted",
    "idle_copies_per_step": "idle/step",
    "missed_experts_per_step": "missed/step",
    "gathered_bytes_per_step": "gathered/step",
    "experts_moved": "moved",
    "wait_s_per_step": "wait/step",
    "balanced_share": "of balanced",
}
"""The figures of a policy and their titles.

``imbalance``: max over mean of the ranks' slots, over steps and layers; before: by the policy's
owners alone, after: as computed. ``mispredicted_imbalance``: how much lower the imbalance would be
with plans made from the step's own loads. ``idle_copies``, ``missed_experts``: see
``Mispredictions``. These and bytes count all layers and ranks. ``wait_s``: what ranks wait on
average for the busiest one, over all layers, by the cost model. ``balanced_share``: of the experts'
part of a step by the same model, the time with slots spread evenly for free over the policy's.
"""


@dataclass(frozen=True)
class Comparison:
    """The loads of ``source`` under several policies, on the ranks of ``costs.topology``.

    ``prediction_errors``: how far predicted loads were off, ``[steps, Y]``, whatever the policy.
    ``notes``: sentences on what the figures rest on.
    """

    source: Path
    costs: Costs
    replays: tuple[PolicyReplay, ...]
    notes: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.costs.topology.world_size

    @property
    def prediction_errors(self) -> Ratios:
        return np.array([step.error_Y for step in self.replays[0].steps])

    def place_of(self, step: int) -> int:
        """Where step ``step``, counted from 1, lies; 0 is the last. Raises ``ConfigError``."""
        steps = self.replays[0].steps
        first, last = steps[0].step + 1, steps[-1].step + 1
        if step and not first <= step <= last:
            raise ConfigError(
                f"there is no step {step} in {self.source}",
                got=f"--step {step}",
                expected=f"a step from {first} to {last}",
                fix="leave --step out for the last one",
            )
        return step - first if step else last - first

    def check_layer(self, layer: int) -> None:
        num_layers = len(self.replays[0].steps[0].owners)
        if not 0 <= layer < num_layers:
            raise ConfigError(
                f"there is no MoE layer {layer} in {self.source}",
                got=f"--layer {layer}",
                expected=f"a layer from 0 to {num_layers - 1}",
                fix="MoE layers are counted from 0, dense layers left out",
            )


def compare(
    source: Path,
    policies: Sequence[str] = (),
    *,
    ranks: int = 0,
    nodes: int = 0,
    overrides: Sequence[str] = (),
) -> Comparison:
    """Replay what ``source`` (a run's folder or a file of loads) recorded; 0 and () as recorded.

    ``overrides``: ``experts.a.b=value`` words over the run's settings. Raises ``StorageError`` for
    loads that are not there or damaged and ``ConfigError`` for anything else that does not fit.
    """
    names = _checked_names(policies)
    loads = read_loads(source)
    header = loads.headers[-1]
    config = override_config(PlanConfig(experts=header.experts), overrides).experts
    costs = replay_costs(header, config, node_of_each(header, ranks, nodes), source)
    first = loads.headers[0]
    owners = first_owners(first, costs.topology.world_size)
    replays = []
    for name in names:
        policy = policy_of(name, config, costs)
        steps = tuple(
            replay(policy, loads.steps, owners, costs.step, costs.topology, window=first.window)
        )
        gathered = tuple(_gathered_bytes(step, header, costs.step.gathers) for step in steps)
        reduced = tuple(_reduced_bytes(step, header) for step in steps)
        replays.append(PolicyReplay(name, steps, gathered, reduced))
    notes = _notes(loads, costs)
    return Comparison(source, costs, tuple(replays), notes)


def max_over_mean(slots_YW: Counts) -> Ratios:
    """Of each layer, ``[Y]``; 1 where there is nothing."""
    mean_Y = slots_YW.mean(1)
    return np.where(mean_Y > 0, slots_YW.max(1) / np.maximum(mean_Y, 1e-30), 1.0)


def document(comparison: Comparison) -> dict[str, object]:
    """Everything as one JSON object: each policy's figures, and its imbalance step by step."""
    return {
        "source": str(comparison.source),
        "ranks": comparison.world_size,
        "costs": asdict(comparison.costs.step),
        "topology": asdict(comparison.costs.topology),
        "notes": list(comparison.notes),
        "steps": [step.step + 1 for step in comparison.replays[0].steps],
        "prediction_error": comparison.prediction_errors.tolist(),
        "policies": [
            {
                "policy": each.policy,
                **each.figures(),
                "imbalance_before": each.imbalance_before().tolist(),
                "imbalance_after": each.imbalance_after().tolist(),
                "planned_copies": [step.planned_copies.tolist() for step in each.steps],
                "late_copies": [step.late_copies.tolist() for step in each.steps],
                "idle_copies": each.idle_copies().tolist(),
                "missed_experts": each.missed_experts().tolist(),
                "gathered_bytes": list(each.gathered_bytes),
                "reduced_bytes": list(each.reduced_bytes),
                "wait_s": each.waits_s().tolist(),
                "moves": [step.moves for step in each.steps],
            }
            for each in comparison.replays
        ],
    }


def _checked_names(policies: Sequence[str]) -> tuple[str, ...]:
    for name in policies:
        if name not in POLICY_NAMES:
            near = nearest_name(name, POLICY_NAMES)
            raise ConfigError(
                f"there is no policy {name} to replay",
                got=name or "nothing between two commas",
                expected=f"one or more of {','.join(POLICY_NAMES)}",
                fix=f"did you mean {near}?" if near else "leave --policy out for all of them",
            )
    return tuple(dict.fromkeys(policies)) or POLICY_NAMES


def _gathered_bytes(step: ReplayedStep, header: LoadsHeader, gathers: int) -> int:
    """Planned copies are gathered ``gathers`` times, late ones once."""
    times_Y = gathers * step.planned_copies + step.late_copies
    return sum(int(n) * each for n, each in zip(times_Y, header.gather_bytes, strict=True))


def _reduced_bytes(step: ReplayedStep, header: LoadsHeader) -> int:
    copies_Y = step.planned_copies + step.late_copies
    return sum(int(n) * each for n, each in zip(copies_Y, header.reduce_bytes, strict=True))


def _notes(loads: RecordedLoads, costs: Costs) -> tuple[str, ...]:
    world_size = costs.topology.world_size
    sources = {len(layers[0]) for step in loads.steps for layers in step.routed}
    notes = []
    if sources != {world_size}:
        notes.append(
            f"recorded by {', '.join(map(str, sorted(sources)))} sources: each expert's slots are "
            f"dealt out alike over {world_size} ranks"
        )
    if costs.step.gathers > 1:
        notes.append("bytes count every planned gather twice, for re-materialization: at most")
    if not costs.step.hidden_gather_s:
        notes.append("nothing is taken to hide transfers; experts.costs.hidden_s says otherwise")
    if loads.cut:
        notes.append("the last line is unfinished and left out")
    return tuple(notes)

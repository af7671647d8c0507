"""From the turns of all contenders to rows and a summary. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from pydantic import JsonValue

from hecate.bench.turns import Turn


@dataclass(frozen=True)
class Measured:
    """What one contender did with one model in one process layout.

    ``warm_up`` is the turn before the timed ``turns``, each of which has the turn of ``ours`` in
    the same round beside it. ``problem``: why there are no figures.
    """

    workload: str
    layout: str
    contender: str
    title: str
    tokens_per_step: int
    settings: Mapping[str, str] = field(default_factory=dict)
    warm_up: Turn | None = None
    turns: tuple[Turn, ...] = ()
    ours: tuple[Turn, ...] = ()
    problem: str = ""

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens a second in each round."""
        return tuple(self.tokens_per_step * len(t.losses) / t.seconds for t in self.turns)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Our tokens a second over this contender's, round by round."""
        pairs = zip(self.ours, self.rates, strict=True)
        return tuple(
            self.tokens_per_step * len(turn.losses) / turn.seconds / rate for turn, rate in pairs
        )

    @property
    def losses(self) -> tuple[float, ...]:
        first = self.warm_up.losses if self.warm_up else ()
        return first + tuple(loss for turn in self.turns for loss in turn.losses)

    @property
    def peak_bytes(self) -> int:
        return max((turn.peak_bytes for turn in self.turns), default=0)


def loss_difference(ours: Measured, other: Measured) -> float:
    """The largest relative difference of the two loss curves over their common steps."""
    pairs = zip(ours.losses, other.losses, strict=False)
    return max((abs(a - b) / abs(b) for a, b in pairs), default=0.0)


def row_of(ours: Measured, measured: Measured, *, tolerance: float) -> dict[str, JsonValue]:
    """The report's row of one contender."""
    row: dict[str, JsonValue] = {
        "model": measured.workload,
        "layout": measured.layout,
        "contender": measured.title,
        "settings": describe(measured.settings),
        "tried": measured.settings.get("tried", ""),
        "status": measured.problem or "ok",
    }
    if measured.problem:
        return row
    losses = measured.losses
    row |= {
        "tokens_per_s": median(measured.rates),
        "tokens_per_s_rounds": list(measured.rates),
        "steps": len(losses),
        "peak_mib": round(measured.peak_bytes / 2**20),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "losses": list(losses),
    }
    if measured.contender != ours.contender:
        ratios = measured.ratios
        difference = loss_difference(ours, measured)
        row |= {
            "ours_over_it": median(ratios),
            "ours_over_it_range": f"{min(ratios):.2f} - {max(ratios):.2f}",
            "ours_over_it_rounds": list(ratios),
            "loss_difference": difference,
            "same_curve": difference <= tolerance,
        }
    return row


def describe(settings: Mapping[str, str]) -> str:
    return ", ".join(value for name, value in settings.items() if name != "tried" and value)


def summarise(stages: Sequence[Sequence[Measured]], ours: str) -> dict[str, float]:
    """The summary of all stages, each of which has the contenders of one model and layout.

    ``vs_best_peer_<layout>`` is the worst over models of our median ratio to the peer against
    which it is lowest.
    """
    summary: dict[str, float] = {}
    worst: dict[str, float] = {}
    for stage in stages:
        mine = next(m for m in stage if m.contender == ours)
        key = f"{mine.workload}_{mine.layout}"
        summary[f"{key}_tokens_per_s"] = median(mine.rates)
        against = {
            m.contender: median(m.ratios) for m in stage if m.contender != ours and not m.problem
        }
        for contender, ratio in against.items():
            summary[f"{key}_vs_{contender}"] = ratio
        if against:
            best = min(against.values())
            summary[f"{key}_vs_best_peer"] = best
            worst[mine.layout] = min(best, worst.get(mine.layout, best))
    return summary | {f"vs_best_peer_{layout}": ratio for layout, ratio in worst.items()}

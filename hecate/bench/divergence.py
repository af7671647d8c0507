"""How far loss curves lie apart, and whether rounding alone explains it. Pure.

Training is chaotic: a sum that is rounded in another order makes a difference that grows from step
to step, by itself and each time a router's near-tie is decided the other way. So curves are held
against *controls*: trainings that do the same arithmetic in another order and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean

from pydantic import JsonValue

MARKS = (1, 10, 50, 100, 200)


@dataclass(frozen=True)
class Curve:
    """What a training did, one entry a step.

    ``losses``: mean cross-entropy in nats per label. ``norms``: of the gradient, before clipping.
    ``copies`` of experts that were made for the step, ``moves`` of experts to other owners after.
    ``imbalances``: slots of the busiest owner over the mean, in the most uneven layer.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    copies: tuple[int, ...]
    moves: tuple[int, ...]
    imbalances: tuple[float, ...]


@dataclass(frozen=True)
class Allowance:
    """What a curve may differ by at a step: ``factor`` times what any control has ``lag`` later.

    When the first near-tie is decided the other way is chance, and differences grow many times
    within a few steps from then on. ``floor``: what rounding of the loss itself makes, below which
    a difference says nothing.
    """

    factor: float
    lag: int
    floor: float


@dataclass(frozen=True)
class Comparison:
    """Trainings of one model on the same rows, which differ in who computes, and in rounding.

    ``controls`` are single processes like ``reference`` with sums in another order, which may train
    on for some steps; ``curves`` have an entry for each way to place experts, ``repeats`` the same
    training once more.
    """

    name: str
    dtype: str
    allowance: Allowance
    reference: Curve
    controls: Mapping[str, Curve] = field(repr=False)
    curves: Mapping[str, Curve] = field(repr=False)
    repeats: Mapping[str, Curve] = field(default_factory=dict, repr=False)

    @property
    def allowed(self) -> tuple[float, ...]:
        """The largest relative difference from the reference's loss, step by step."""
        losses = [control.losses for control in self.controls.values()]
        return tolerances(
            [differences(each, self.reference.losses) for each in losses], self.allowance
        )


def differences(losses: Sequence[float], reference: Sequence[float]) -> tuple[float, ...]:
    """By how much each loss differs from the reference's, relative, over their common steps."""
    return tuple(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=False))


def largest_so_far(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(accumulate(values, max))


def at_marks(values: Sequence[float], marks: Sequence[int] = MARKS) -> dict[int, float]:
    """The largest of the first ``mark`` values, for each mark that is reached."""
    largest = largest_so_far(values)
    return {mark: largest[mark - 1] for mark in marks if mark <= len(values)}


def tolerances(controls: Sequence[Sequence[float]], allowance: Allowance) -> tuple[float, ...]:
    """What is allowed at each step, by the controls' differences step by step.

    Within ``lag`` of the end it is what they differ by there.
    """
    largest = largest_so_far(map(max, zip(*controls, strict=False)))
    later = (*largest[allowance.lag :], *largest[-1:] * allowance.lag)[: len(largest)]
    return tuple(max(allowance.floor, allowance.factor * each) for each in later)


def share_of_tolerance(values: Sequence[float], allowed: Sequence[float]) -> float:
    """The largest difference in units of what its step allows: at most 1 if all are within."""
    return max((a / b for a, b in zip(values, allowed, strict=False)), default=0.0)


def same_bits(one: Curve, other: Curve) -> bool:
    """Whether losses and gradient norms of the common steps are the same numbers."""
    steps = min(len(one.losses), len(other.losses))
    return (one.losses[:steps], one.norms[:steps]) == (other.losses[:steps], other.norms[:steps])


def rows_of(comparison: Comparison) -> list[dict[str, JsonValue]]:
    """A row for each control and each curve."""
    allowed, rows = comparison.allowed, []
    for kind, curves in (("control", comparison.controls), ("policy", comparison.curves)):
        for name, curve in curves.items():
            apart = differences(curve.losses, comparison.reference.losses)
            row: dict[str, JsonValue] = {
                "trained": comparison.name,
                "dtype": comparison.dtype,
                "kind": kind,
                "name": name,
                "steps": len(apart),
                **{f"difference_{mark}": value for mark, value in at_marks(apart).items()},
                "worst_difference": max(apart),
                "last_loss": curve.losses[-1],
                "losses": list(curve.losses),
            }
            if kind == "policy":
                row |= {
                    "share_of_tolerance": share_of_tolerance(apart, allowed),
                    "copies_per_step": fmean(curve.copies),
                    "moves": sum(curve.moves),
                    "imbalance": fmean(curve.imbalances),
                    "most_imbalance": max(curve.imbalances),
                }
            if name in comparison.repeats:
                row["repeated_steps"] = len(comparison.repeats[name].losses)
                row["repeats_to_the_bit"] = same_bits(curve, comparison.repeats[name])
            rows.append(row)
    return rows


def summarise(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """The worst over all curves; those of fp64 have keys of their own.

    ``tolerance`` is what the last step of a curve allows, the most of all. ``share_of_tolerance``:
    the worst difference in units of what its own step allows.
    """
    summary: dict[str, float] = {}
    for suffix, group in (
        ("", [each for each in comparisons if each.dtype != "float64"]),
        ("_fp64", [each for each in comparisons if each.dtype == "float64"]),
    ):
        rows = [
            row for comparison in group for row in rows_of(comparison) if row["kind"] == "policy"
        ]
        if rows:
            summary |= {
                f"worst_difference{suffix}": max(float(str(r["worst_difference"])) for r in rows),
                f"tolerance{suffix}": max(_last_allowed(comparison) for comparison in group),
                f"share_of_tolerance{suffix}": max(
                    float(str(r["share_of_tolerance"])) for r in rows
                ),
            }
    repeats = [
        same_bits(comparison.curves[name], again)
        for comparison in comparisons
        for name, again in comparison.repeats.items()
    ]
    return summary | {"bit_identical_repeats": float(bool(repeats) and all(repeats))}


def _last_allowed(comparison: Comparison) -> float:
    steps = max(len(curve.losses) for curve in comparison.curves.values())
    return comparison.allowed[min(steps, len(comparison.allowed)) - 1]

"""What to begin to warm, and what to give up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from serving.scheduling.prewarm.coming import coming, overdue
from serving.scheduling.prewarm.config import PrewarmConfig
from serving.scheduling.prewarm.shapes import Shape


@dataclass(frozen=True)
class Want:
    """What an instance, ``owner``, would use: ``key`` names it to its backend."""

    owner: str
    key: str


@dataclass(frozen=True)
class Chance:
    """``soon``: that it is needed within the time to warm it. ``ever``: that it is needed within
    the units looked ahead at, however late. ``late``: what it waits for lasts too long."""

    want: Want
    soon: float
    ever: float
    late: bool = False


@dataclass(frozen=True)
class Warming:
    """What a backend is to do now, in that order."""

    give_up: tuple[Want, ...] = ()
    begin: tuple[Want, ...] = ()


@dataclass(frozen=True)
class Open:
    """A unit of an instance that goes on, since ``elapsed_s``."""

    unit: str
    elapsed_s: float


def chance_of(
    want: Want,
    shape: Shape,
    going_on: Sequence[Open],
    needing: Collection[str],
    config: PrewarmConfig,
    warm_s: float,
) -> Chance:
    """That ``want`` is needed: by a unit of ``needing``, after those that are ``going_on``.

    Of units side by side the likeliest counts; routes to units that need it add up.
    """
    soon = ever = 0.0
    late = True
    for each in going_on:
        found = coming(shape, each.unit, each.elapsed_s, needing, depth=config.depth)
        soon = max(soon, sum(one.within(warm_s) for one in found))
        ever = max(ever, sum(one.probability for one in found))
        late &= overdue(shape, each.unit, each.elapsed_s - config.patience_s) > config.overdue
    return Chance(want, min(1.0, soon), min(1.0, ever), late)


def decide(
    chances: Sequence[Chance],
    warmed: Collection[Want],
    config: PrewarmConfig,
    threshold: float,
) -> Warming:
    """``chances``: of all instances under way, who goes first before others (Gittins' order); what
    is ``warmed`` and has none any more is given up, its branch was not taken."""
    by_want = {chance.want: chance for chance in chances}
    give_up = tuple(
        want
        for want in warmed
        if (chance := by_want.get(want)) is None or chance.late or not chance.ever
    )
    room = config.most - len(warmed) + len(give_up)
    begin = [
        chance.want
        for chance in chances
        if chance.soon >= threshold and not chance.late and chance.want not in warmed
    ]
    return Warming(give_up, tuple(begin[: max(0, room)]))

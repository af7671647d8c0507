"""Who is under way, and what is therefore to be kept: by the last use alone, by who waits, or by
what is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from hecate.bench.gittins.prewarm.served import Application
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.live import ClassKey
from serving.scheduling.applications.traces import Kind
from serving.scheduling.prewarm.config import PrewarmConfig
from serving.scheduling.prewarm.decide import Chance, Open, Want, chance_of
from serving.scheduling.prewarm.keeping import Claim, Kept
from serving.scheduling.prewarm.shapes import NO_SHAPE, Shape, shape_of

_RENEW = 8  # traces after which a class's shape is drawn up again


class Shapes:
    """The shape of each class of a book, as of a few traces ago."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._known: dict[ClassKey, tuple[int, Shape]] = {}
        self._ends: dict[ClassKey, int] = {}

    def of(self, key: ClassKey) -> Shape:
        graph = self._book.graphs.get(key)
        if graph is None:
            return NO_SHAPE
        ends = self._ends.get(key, 0)
        known = self._known.get(key)
        if known is None or ends >= known[0] + _RENEW:
            known = self._known[key] = ends, shape_of(graph.traces)
        return known[1]

    def over(self, key: ClassKey) -> None:
        """An instance has ended."""
        self._ends[key] = self._ends.get(key, 0) + 1


def chance(
    application: Application,
    key: str,
    kinds: frozenset[Kind],
    shapes: Shapes,
    config: PrewarmConfig,
    warm_s: float,
    now_s: float,
) -> Chance:
    """That a unit of one of ``kinds`` comes."""
    shape = shapes.of(application.live.key)
    going_on = [Open(application.unit.unit, now_s - application.began_s)]
    needing = frozenset(unit for unit, kind in shape.kinds.items() if kind in kinds)
    return chance_of(Want(application.job.instance, key), shape, going_on, needing, config, warm_s)


Chances = Callable[[Application], Chance]
Rule = Callable[[Sequence[Application], Chances, float], list[tuple[Application, Claim]]]


def by_use(
    applications: Sequence[Application], chance: Chances, threshold: float
) -> list[tuple[Application, Claim]]:
    """LRU: nobody has a claim, and nothing is fetched before it is used."""
    return []


def by_queue(
    applications: Sequence[Application], chance: Chances, threshold: float
) -> list[tuple[Application, Claim]]:
    """EPWQ: those that have requests, which wait or run."""
    return [(each, Claim.NOW) for each in applications if each.waiting or each.running]


def by_expectation(
    applications: Sequence[Application], chance: Chances, threshold: float
) -> list[tuple[Application, Claim]]:
    """Those with requests, then those that are expected to have some before long, then the others
    that are under way."""
    found = []
    for each in applications:
        if each.waiting or each.running:
            found.append((each, Claim.NOW))
        elif (expected := chance(each)).ever:
            soon = expected.soon >= threshold
            found.append((each, Claim.SOON if soon else Claim.LATER))
    return found


RULES: Mapping[str, Rule] = MappingProxyType(
    {"lru": by_use, "epwq": by_queue, "hermes": by_expectation}
)


def claimed(
    rule: str,
    applications: Sequence[Application],
    chance: Chances,
    threshold: float,
    key: Callable[[Application], str],
) -> list[Kept]:
    """What ``rule`` would keep; ``key``: what an application uses."""
    found = RULES[rule](applications, chance, threshold)
    return [Kept(key(application), claim, application.rank) for application, claim in found]

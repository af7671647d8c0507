"""Which of the requests that wait goes to an engine next, and how urgent it is there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.request import Request
from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.order import LEAST_S, Order, Place

MOST_OVERTAKING = 2  # times what engines hold is sent there at most, so that the first can overtake
LEAST_MARGIN = 0.01
_AHEAD = 1 << 20  # levels of who had more than its part


@dataclass(eq=False)
class Asked:
    """A request that waits or is being answered. ``level``: its priority in the engine."""

    request: Request
    live: Live
    ask: Ask
    place: Place
    level: int = 0
    running: bool = False
    cached: int = 0
    generated: int = 0
    ended: set[int] = field(default_factory=set)

    @property
    def answers(self) -> int:
        """That are still to come."""
        return self.request.n - len(self.ended)


def turn(waiting: Iterable[Asked]) -> Asked:
    """Whose turn it is.

    ``Request.priority`` orders what is one client's own: the calls of an instance, and a tenant's
    untagged requests. The turn is theirs, and they give it to whom they like.
    """
    waiting = list(waiting)
    first = min(waiting, key=lambda asked: asked.place)
    own = [
        asked
        for asked in waiting
        if asked.live is first.live
        or (not first.live.key.name and asked.live.key == first.live.key)
    ]
    return min(own, key=lambda asked: (asked.request.priority, asked.place))


def may_go(asked: Asked, running: Iterable[Asked], places: int, order: Order) -> bool:
    """Whether engines with ``places`` for answers have one for ``asked``.

    Those that would give way to it take none; some of them do give way, in the engine. A request
    of more answers than there are places goes alone.
    """
    running = list(running)
    held = sum(each.answers for each in running)
    if not held or held + asked.request.n <= places:
        return True
    if not order.preempts or held + asked.request.n > MOST_OVERTAKING * places:
        return False
    ahead = sum(each.answers for each in running if not order.gives_way(each.place, asked.place))
    return ahead + asked.request.n <= places


def level(place: Place, before: int | None, order: Order, margin: float) -> int:
    """``place`` as a priority of engines, where lower goes first: one more for each ``margin`` by
    which the rank grows. It stays what it was ``before`` while the rank moves by less than that.
    """
    if not order.preempts:
        return 0
    exact = math.log(max(place.rank, LEAST_S) / LEAST_S) / math.log1p(max(margin, LEAST_MARGIN))
    exact += _AHEAD * place.ahead
    if before is not None and abs(exact - before) < 1:
        return before
    return math.floor(exact)

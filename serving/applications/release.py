"""Which of the requests that wait goes to an engine next, and how urgent it is there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.request import Request
from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.order import Order, Place

MOST_OVERTAKING = 2  # times what engines hold is sent there at most, so that the first can overtake
STEP = 2.0  # of ranks, from one priority of an engine to the next
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


def may_go(
    asked: Asked, running: Iterable[Asked], places: int, order: Order, back_s: float
) -> bool:
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
    ahead = sum(
        each.answers for each in running if not gives_way(each.place, asked.place, order, back_s)
    )
    return ahead + asked.request.n <= places


def gives_way(running: Place, waiting: Place, order: Order, back_s: float) -> bool:
    """Whether it is worth it: as ``order`` has it, and by a level (see ``level``)."""
    if not order.gives_way(running, waiting):
        return False
    return running.ahead or running.rank + back_s > STEP * (waiting.rank + back_s)


def level(place: Place, before: int | None, order: Order, back_s: float) -> int:
    """``place`` as a priority of engines, where lower goes first.

    ``back_s``: what it costs to bring back who gave way. One more for each time that rank and cost
    together double: small work is not worth interrupting, nor are two that are about as large to
    take turns. It stays what it was ``before`` while the rank moves by less than that.
    """
    if not order.preempts:
        return 0
    exact = math.log(1 + max(place.rank, 0.0) / back_s, STEP) + _AHEAD * place.ahead
    if before is not None and abs(exact - before) < 1:
        return before
    return math.floor(exact)

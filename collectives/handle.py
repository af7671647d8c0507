"""The handle of a collective under way, which names what goes wrong with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from collectives.errors import listed, naming
from collectives.schedule import layer_name
from collectives.transports.protocol import Launch, Steps, Transport


class Handle:
    """A collective under way; its rows are the caller's again when ``wait()`` returns.

    On CUDA ``wait()`` makes the current stream wait, not the host. On gloo it blocks, and raises
    ``CollectiveTimeout`` or ``PeerLost`` where a rank hung or died; of one that died in the middle
    of a message gloo tells only when the group's timeout is over. A second call repeats the
    outcome of the first without touching the works again (a gloo receive that is over and waited
    for again never returns).
    """

    # Note [Who drives a collective]
    # ------------------------------
    # A transport's steps are works to wait for, with additions and further launches in between.
    # One round:      whoever waits drives it; the backend's own threads or streams move the data.
    # More, on CPU:   a thread drives it, so that a relay passes on while its rank computes.
    # More, on CUDA:  driven at once on a stream of its own, where to wait is to queue.

    def __init__(self, what: str, launch: Launch, transport: Transport, steps: Steps) -> None:
        """Launches; ``steps`` are those of ``transport`` for ``launch``."""
        self._what, self._rank = _description(what, launch, transport), launch.rank
        self._steps: Steps | None = steps
        self._works: Sequence[dist.Work] = ()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._event: torch.cuda.Event | None = None
        # Rows and steps live as long as something may read or write them.
        self._keeps: tuple[Launch, Steps] | None = (launch, steps)
        several = _num_rounds(launch, transport) > 1
        if several and launch.device.type == "cuda":
            self._queue(transport.resources.stream(launch.device))
            return
        with naming(self._what, self._rank):
            self._advance()
        if several and self._steps is not None:
            self._thread = threading.Thread(target=self._drive, name=what, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when this rank's part is over; any number of times."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
        self._drive()
        self._keeps = None
        if self._error is not None:
            raise self._error

    def done(self) -> bool:
        """Whether ``wait()`` would return at once, as far as can be told without waiting.

        Gloo cannot tell for single messages: there it is ``True`` only after ``wait()``, or where
        a thread has waited.
        """
        if self._event is not None:
            return bool(self._event.query())
        if self._thread is not None:
            return not self._thread.is_alive()
        if self._steps is None:
            return True
        return all(work.is_completed() for work in self._works)

    def _queue(self, stream: torch.cuda.Stream) -> None:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._drive()
            self._event = torch.cuda.Event()
            self._event.record(stream)
        if self._error is not None:
            raise self._error

    def _drive(self) -> None:
        """Wait and advance until the end; what goes wrong is kept for whoever waits."""
        try:
            with naming(self._what, self._rank):
                while self._steps is not None:
                    for work in self._works:
                        work.wait()
                    self._advance()
        except Exception as error:
            self._error, self._steps = error, None

    def _advance(self) -> None:
        """Go on to the next works to wait for, or to the end."""
        assert self._steps is not None
        with torch.no_grad():
            for works in self._steps:
                if works:
                    self._works = works
                    return
        self._steps, self._works = None, ()


def _num_rounds(launch: Launch, transport: Transport) -> int:
    """In how many rounds this rank takes part."""
    if transport.takes_everyone:
        return len(launch.schedule.rounds)
    sides = (launch.schedule.sends(launch.rank), launch.schedule.receives(launch.rank))
    return sum(1 for sends, receives in zip(*sides, strict=True) if sends or receives)


def _description(what: str, launch: Launch, transport: Transport) -> Callable[[], str]:
    """The collective by its layers and the ranks that this one exchanges rows with."""
    changes, schedule, rank = launch.changes, launch.schedule, launch.rank
    everyone = transport.takes_everyone

    def text() -> str:
        layers = sorted({item.layer for transfers in schedule.rounds for item in transfers})
        sides = (*schedule.sends(rank), *schedule.receives(rank))
        ends = {end for side in sides for item in side for end in (item.source, item.target)}
        peers = set(range(schedule.world_size)) if everyone else ends
        return (
            f"the {what} of {listed('layer', [layer_name(changes, layer) for layer in layers])} "
            f"with {listed('rank', sorted(peers - {rank}))}"
        )

    return text

"""Who may go on to be scheduled: requests whose adapter is on the device, the others wait here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from serving.lora.facts import AdapterFacts
from serving.lora.slots import Place, Slots


@dataclass(frozen=True)
class Waiting:
    """A request without its adapter, since ``since_s``; ``tokens``: of its prompt."""

    request_id: str
    facts: AdapterFacts
    tokens: int
    since_s: float


class Guests(Protocol):
    """Whether the first that waits for an adapter may go on though no place is free for it."""

    def __call__(self, first: Waiting) -> bool: ...


class Loads(Protocol):
    """Starts to fill a place for the first that waits for it; ``AdapterGate.loaded`` hears when it
    is done, ``arriving`` before that where requests need not wait for it.

    True: they may go on at once, and ``arriving`` is not to be called.
    """

    def __call__(self, first: Waiting, place: Place) -> bool: ...


@dataclass
class Passed:
    """``ready``: may be scheduled, in order; ``failed``: their adapter could not be loaded."""

    ready: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


class AdapterGate:
    """Holds a lease on the adapter of every request that it let through, until ``leave``.

    In order of arrival; a request whose adapter is there overtakes one whose adapter finds no slot
    for up to ``patience_s``, then slots empty until that one had its turn. A step can therefore
    never have more adapters than slots, guests aside, and no adapter waits for ever.
    """

    def __init__(
        self,
        slots: Slots,
        load: Loads,
        clock: Callable[[], float],
        patience_s: float,
        guests: Guests = lambda first: False,
    ) -> None:
        self._slots = slots
        self._load = load
        self._guests = guests
        self._clock = clock
        self._patience_s = patience_s
        self._waiting: list[Waiting] = []
        self._loading: set[str] = set()
        self._leases: dict[str, str] = {}

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        return tuple(self._waiting)

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests of the adapters whose slots are filled."""
        return tuple(name for name in self._slots.resident if name not in self._loading)

    @property
    def seated(self) -> tuple[str, ...]:
        """Digests of the adapters that have a slot, filled or not; for any thread."""
        return self._slots.resident

    @property
    def guests(self) -> tuple[str, ...]:
        """Digests of those that go on without a place."""
        return self._slots.guests

    def place(self, request_id: str) -> Place:
        """Of the adapter of a request that was let through."""
        return self._slots.place(self._leases[request_id])

    def place_of(self, digest: str) -> Place:
        """Of an adapter that has one."""
        return self._slots.place(digest)

    def enter(self, request_id: str, facts: AdapterFacts, tokens: int = 0) -> Passed:
        """A request that needs this adapter; who may go on now."""
        self._waiting.append(Waiting(request_id, facts, tokens, self._clock()))
        return self._advance()

    def leave(self, request_id: str) -> Passed:
        """A request has ended, let through or not; who may go on now."""
        digest = self._leases.pop(request_id, None)
        if digest is None:
            self._waiting = [each for each in self._waiting if each.request_id != request_id]
        else:
            self._slots.release(digest)
        return self._advance()

    def arriving(self, digest: str) -> Passed:
        """A load is under way that nobody has to wait for, and that cannot fail any more."""
        self._loading.remove(digest)
        return self._advance()

    def loaded(self, digest: str, error: str = "") -> Passed:
        """A load has ended; who may go on now."""
        self._loading.discard(digest)
        passed = self._advance() if not error else Passed()
        self._slots.release(digest)  # the load's own
        if error:
            failed = [each.request_id for each in self._waiting if each.facts.digest == digest]
            failed += [name for name, held in self._leases.items() if held == digest]
            self._waiting = [each for each in self._waiting if each.facts.digest != digest]
            for request_id in failed:
                self._leases.pop(request_id, None)
            self._slots.drop(digest)
            passed.failed += [(request_id, error) for request_id in failed]
        passed.ready += self._advance().ready
        return passed

    def _advance(self) -> Passed:
        passed = Passed()
        left: list[Waiting] = []
        blocked = False
        for each in self._waiting:
            digest = each.facts.digest
            if digest in self._loading or blocked:
                left.append(each)
            elif self._slots.lease(digest) is not None:
                self._leases[each.request_id] = digest
                passed.ready.append(each.request_id)
            elif (taken := self._slots.take(digest, each.facts.rank)) is None:
                if self._guests(each):
                    self._slots.guest(digest, each.facts.rank)
                    self._leases[each.request_id] = digest
                    passed.ready.append(each.request_id)
                    continue
                left.append(each)
                blocked = self._clock() - each.since_s >= self._patience_s
            elif self._load(each, taken[0]):
                self._slots.lease(digest)  # the request's, beside the load's own
                self._leases[each.request_id] = digest
                passed.ready.append(each.request_id)
            else:
                left.append(each)
                self._loading.add(digest)
        self._waiting = left
        return passed

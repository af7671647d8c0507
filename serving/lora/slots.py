"""Where on the device an adapter lies, and which one gives way to another."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST_CLASS = 4


def slot_class(rank: int) -> int:
    """The rank that an adapter of ``rank`` is padded to: a power of two."""
    return max(SMALLEST_CLASS, 1 << (rank - 1).bit_length())


@dataclass(frozen=True)
class Place:
    """Rows ``[start, start + width)`` of the packed halves; ``start`` is a multiple of ``width``,
    the adapter's slot class. A guest's rows are below 0: there are none, but it has a place as
    others have."""

    start: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + self.width

    @property
    def index(self) -> int:
        """Which of its class's slots it is."""
        return self.start // self.width


@dataclass
class _Held:
    place: Place
    leases: int
    used: int


class Slots:
    """``rows`` packed rows, of which each adapter has an aligned power of two.

    Aligned, any slot is halves of a larger one (a buddy system): what was freed by small adapters
    serves a large one again, whatever came in between. An adapter with a lease never gives way; of
    the others those that were used last the longest ago do.
    """

    def __init__(self, slots: int, max_rank: int) -> None:
        self.rows = slots * slot_class(max_rank)
        self._held: dict[str, _Held] = {}
        self._uses = 0

    def lease(self, digest: str) -> Place | None:
        """The place of an adapter that has one, held until ``release``."""
        held = self._held.get(digest)
        if held is None:
            return None
        held.leases += 1
        self._use(held)
        return held.place

    def take(self, digest: str, rank: int) -> tuple[Place, tuple[str, ...]] | None:
        """A place for an adapter that has none, leased, and who had to give way for it.

        None where every place has somebody with a lease in it.
        """
        assert digest not in self._held
        width = slot_class(rank)
        best: tuple[int, int, Place] | None = None
        for start in range(0, self.rows - width + 1, width):
            place = Place(start, width)
            inside = self._inside(place)
            if any(held.leases for held in inside):
                continue
            newest = max((held.used for held in inside), default=0)
            # Among free ones, where least is free beside: larger slots stay whole.
            beside = self._free_around(place) if not inside else 0
            if best is None or (newest, beside) < best[:2]:
                best = (newest, beside, place)
        if best is None:
            return None
        place = best[2]
        gone = tuple(name for name, held in self._held.items() if _overlap(held.place, place))
        for name in gone:
            del self._held[name]
        self._held[digest] = held = _Held(place, 1, 0)
        self._use(held)
        return place, gone

    def guest(self, digest: str, rank: int) -> Place:
        """A place that takes no room, leased, for an adapter that the host does all of; forgotten
        with its last lease."""
        assert digest not in self._held
        width = slot_class(rank)
        lowest = min((held.place.start for held in self._held.values()), default=0)
        place = Place(min(0, lowest) // width * width - width, width)
        self._held[digest] = held = _Held(place, 1, 0)
        self._use(held)
        return place

    def release(self, digest: str) -> None:
        """Give one lease back."""
        held = self._held[digest]
        assert held.leases > 0
        held.leases -= 1
        if not held.leases and held.place.start < 0:
            del self._held[digest]

    def drop(self, digest: str) -> None:
        """Forget an adapter whose place was never filled."""
        self._held.pop(digest, None)

    def place(self, digest: str) -> Place:
        return self._held[digest].place

    @property
    def resident(self) -> tuple[str, ...]:
        """For any thread."""
        return tuple(name for name, held in list(self._held.items()) if held.place.start >= 0)

    @property
    def guests(self) -> tuple[str, ...]:
        return tuple(name for name, held in self._held.items() if held.place.start < 0)

    def _use(self, held: _Held) -> None:
        self._uses += 1
        held.used = self._uses

    def _inside(self, place: Place) -> list[_Held]:
        return [held for held in self._held.values() if _overlap(held.place, place)]

    def _free_around(self, place: Place) -> int:
        """The width of the largest aligned slot around a free ``place`` that is free as a whole."""
        width = place.width
        while width * 2 <= self.rows:
            start = place.start // (width * 2) * width * 2
            if start + width * 2 > self.rows or self._inside(Place(start, width * 2)):
                break
            width *= 2
        return width


def _overlap(one: Place, other: Place) -> bool:
    return one.start < other.stop and other.start < one.stop

"""Applications under way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from serving.scheduling.applications.traces import Call, Kind, UnitRun


@dataclass(frozen=True, order=True)
class ClassKey:
    """Whose class: two tenants' applications of one name share nothing. An untagged request is an
    application of one call, of its tenant's class with an empty name."""

    tenant: str
    name: str = ""


@dataclass
class OpenCall:
    """A request that is not answered yet. ``computed``: tokens of its prompt so far, ``output``:
    tokens of its answers so far, ``attained_s``: what they cost."""

    prompt_tokens: int
    computed: int = 0
    output: int = 0
    attained_s: float = 0.0


@dataclass
class OpenUnit:
    """A unit that has begun and not ended, ``began_s`` on the book's clock.

    ``running``: its calls under way, by request id; ``held``: its runs that were begun by hand and
    are to be ended so, by name, and when they began. It ends with the last of both. ``calls``:
    those that were answered.
    """

    unit: str
    kind: Kind
    began_s: float
    running: dict[str, OpenCall] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    attained_s: float = 0.0
    failed: bool = False


@dataclass(eq=False)
class Live:
    """One instance. ``attained_s``: seconds of the device that it has had, of calls under way too;
    ``ended_s``: of that, in units that have ended.

    ``arrived_s``, ``deadline_s``: on the caller's clock; the deadline is infinite where it has
    none. ``began_s``, ``seen_s``: when it began and was last heard of, on the book's own clock,
    which never runs back and leaps no gap. ``runs``: the units that ended, in that order;
    ``open_units``: those that have not, by name. ``last``: it ends as soon as nothing of it is
    open. ``shown``: how often it has shown more of itself, a unit that began or ended.
    """

    key: ClassKey
    instance: str
    arrived_s: float
    deadline_s: float = math.inf
    attained_s: float = 0.0
    ended_s: float = 0.0
    began_s: float = 0.0
    seen_s: float = 0.0
    runs: list[UnitRun] = field(default_factory=list)
    open_units: dict[str, OpenUnit] = field(default_factory=dict)
    last: bool = False
    shown: int = 0


@dataclass(frozen=True)
class Ask:
    """A request that waits to be released, or runs. ``number``: in order of arrival."""

    request_id: str
    number: int
    arrived_s: float
    prompt_tokens: int
    max_tokens: int

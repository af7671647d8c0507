"""Applications under way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from serving.scheduling.applications.traces import Kind, UnitRun


@dataclass(frozen=True, order=True)
class ClassKey:
    """Whose class: two tenants' applications of one name share nothing. An untagged request is an
    application of one call, of its tenant's class with an empty name."""

    tenant: str
    name: str = ""


@dataclass
class OpenUnit:
    """A unit that has begun and not ended. ``running``: its calls that are not answered yet, by
    request id."""

    unit: str
    kind: Kind
    began_s: float
    running: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Live:
    """One instance. ``attained_s``: seconds of the device that it has had, of calls under way too.

    ``deadline_s``: on the clock that ``arrived_s`` is of; infinite where it has none. ``runs``: the
    units that ended, in that order.
    """

    key: ClassKey
    instance: str
    arrived_s: float
    deadline_s: float = math.inf
    attained_s: float = 0.0
    seen_s: float = 0.0
    runs: list[UnitRun] = field(default_factory=list)
    open: dict[str, OpenUnit] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A request that waits to be released, or runs. ``number``: in order of arrival."""

    request_id: str
    number: int
    arrived_s: float
    prompt_tokens: int
    max_tokens: int

"""When to make ready what an application may need."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config


class PrewarmConfig(Config):
    """Of one backend.

    ``threshold``: begin once the unit that needs it starts within the time that it takes to get
    ready, with at least that chance; 1 or more never begins. With ``waste_budget`` over 0 that is
    only the first one: it is moved so that a second saved costs at most so many seconds in which
    something was ready and idle.

    Give up once what runs now lasts longer than ``overdue`` of its kind did, for ``patience_s``.
    ``depth``: how many units to look ahead. ``most``: how many may be ready and unused at once.
    """

    threshold: float = Field(default=0.1, gt=0)
    waste_budget: float = Field(default=0.0, ge=0)
    overdue: float = Field(default=0.98, gt=0, le=1)
    patience_s: float = Field(default=1.0, ge=0)
    depth: int = Field(default=2, ge=1, le=2)
    most: int = Field(default=64, ge=0)

"""How much is remembered of applications."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config


class HistoryConfig(Config):
    """``window_traces``: instances that are kept of a class, the newest; ``enough_traces``: fewer
    are no ground for a forecast. Of all tenants ``max_classes`` are kept, in ``max_mib`` of memory,
    and up to ``max_lives`` instances are under way.

    ``idle_s``: an instance of which nothing is open and nothing was heard for so long has ended.
    ``hang_s``: a tool that has run for so long has failed.
    """

    window_traces: int = Field(default=1000, ge=1)
    enough_traces: int = Field(default=30, ge=1)
    max_classes: int = Field(default=1024, ge=1)
    max_mib: int = Field(default=256, ge=1)
    max_lives: int = Field(default=65536, ge=1)
    idle_s: float = Field(default=300.0, gt=0)
    hang_s: float = Field(default=900.0, gt=0)

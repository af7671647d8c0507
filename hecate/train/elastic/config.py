"""How patient the supervisor of a job is."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config


class ElasticConfig(Config):
    """Of ``hecate train --ranks``, which goes on when ranks die.

    ``leave_s``: how long ranks that are left may take to give up a collective before they are
    replaced as well; one that is stopped or hangs is found so. ``attempts``: how often the job may
    fail without a newer checkpoint before it ends, or goes on without the ranks that died in each
    of these attempts. ``replace``: whether a new process takes the place of one that died; without,
    the others go on alone.
    """

    leave_s: float = Field(default=10.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    replace: bool = True

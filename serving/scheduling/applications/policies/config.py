"""How far a policy's ranks are followed."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config


class OrderConfig(Config):
    """``ageing_s``: after so long a wait a request counts as half of its demand, after twice as
    long as a third, and so on; 0 for no ageing. ``margin``: by which share a request has to be
    smaller than one that runs to take its place. ``tenant_lead_s``: by how many seconds of the
    device a tenant may be ahead of the one that was served least, of those with instances under
    way, before its requests come after theirs; 0 for no bound.
    """

    ageing_s: float = Field(default=600.0, ge=0)
    margin: float = Field(default=0.25, ge=0)
    tenant_lead_s: float = Field(default=0.0, ge=0)

"""How many adapters an engine holds, and where they come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hecate.config import Config


class LoraConfig(Config):
    """``slots``: room on the device for so many adapters of ``max_rank``; of smaller ones, for
    more. 0: no adapters. It is taken when the first adapter comes.

    ``folder``: each folder in it that holds an adapter is served under its name, ``""`` for none;
    it is looked through every ``watch_s``. ``host_cache_mib``: adapters that are kept in the host's
    memory beside. ``patience_s``: once an adapter has waited so long for a slot, those that have
    one get no new requests until it had its turn.

    ``cold``: how a request goes on while its adapter is loaded. ``wait``; at once, layer by layer
    as they come (``pipeline``); or with ``host_workers`` processes computing what has not come
    (``assist``), on ``host_cores`` if they are named; ``auto`` estimates which is quickest.
    ``throttle_ms``: how long a load takes at least, to measure with a slower link than is there.
    """

    slots: int = Field(default=8, ge=0)
    max_rank: int = Field(default=64, ge=1)
    folder: str = ""
    watch_s: float = Field(default=2.0, gt=0)
    host_cache_mib: int = Field(default=1024, ge=0)
    patience_s: float = Field(default=1.0, ge=0)
    cold: Literal["auto", "wait", "pipeline", "assist"] = "auto"
    host_workers: int = Field(default=0, ge=0)
    host_cores: tuple[int, ...] = ()
    throttle_ms: float = Field(default=0.0, ge=0)

"""How many adapters an engine holds, and where they come from."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config


class LoraConfig(Config):
    """``slots``: room on the device for so many adapters of ``max_rank``; of smaller ones, for
    more. 0: no adapters. It is taken when the first adapter comes.

    ``folder``: each folder in it that holds an adapter is served under its name, ``""`` for none;
    it is looked through every ``watch_s``. ``host_cache_mib``: adapters that are kept in the host's
    memory beside. ``patience_s``: once an adapter has waited so long for a slot, those that have
    one get no new requests until it had its turn.
    """

    slots: int = Field(default=8, ge=0)
    max_rank: int = Field(default=64, ge=1)
    folder: str = ""
    watch_s: float = Field(default=2.0, gt=0)
    host_cache_mib: int = Field(default=1024, ge=0)
    patience_s: float = Field(default=1.0, ge=0)

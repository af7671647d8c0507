"""What is known of an adapter without its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterFacts:
    """``digest``: SHA-256 of its files, which is its identity: a name may come to mean another.

    ``folder``: where it lies. ``rank``: the largest one of its projections. ``targets``: the
    projections that it changes.
    """

    name: str
    digest: str
    folder: str
    rank: int
    num_bytes: int
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Residency:
    """Digests of adapters whose weights are on the device, or on their way there, and of those in
    the host's memory. What is in neither is on disk."""

    device: tuple[str, ...] = ()
    host: tuple[str, ...] = ()

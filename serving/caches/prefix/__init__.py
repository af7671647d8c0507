"""Prefix caches: blocks of prompts whose beginnings are equal are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from serving.caches.prefix.none import NoPrefix
from serving.caches.prefix.protocol import PrefixCache
from serving.caches.prefix.radix import RadixPrefix
from serving.caches.prefix.tiered import TieredPrefix

PREFIX_CACHES: Mapping[str, type[NoPrefix] | type[RadixPrefix]] = MappingProxyType(
    {"none": NoPrefix, "radix": RadixPrefix}
)

__all__ = ["PREFIX_CACHES", "NoPrefix", "PrefixCache", "RadixPrefix", "TieredPrefix"]

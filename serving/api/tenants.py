"""Who may ask, and how much: API keys of tenants, and their quotas.

Keys are kept and compared as SHA-256 digests, all of them each time and in constant time, so that
neither a file nor a clock tells anything about one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from hecate.config import Config, load_config
from hecate.errors import ConfigError
from serving.errors import QuotaExceeded, Unauthorized

Clock = Callable[[], float]


class QuotaConfig(Config):
    """What a tenant may use of each ingress; 0 is without bound.

    Tokens are those of prompts and answers. A tenant that has used more than it may waits until
    the minute's share has made up for it; what is being answered goes on.
    """

    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_minute: int = Field(default=0, ge=0)


class TenantConfig(QuotaConfig):
    """A tenant of a keys file. ``sha256``: of each of its keys, in hex (``sha256sum`` makes it)."""

    name: str = Field(min_length=1)
    sha256: tuple[str, ...] = Field(min_length=1)


class KeysConfig(Config):
    """A keys file."""

    tenants: tuple[TenantConfig, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Keys:
    """Tenants by the digests of their keys, and the quota of each."""

    tenants: Mapping[bytes, str] = field(default_factory=dict)
    quotas: Mapping[str, QuotaConfig] = field(default_factory=dict)


@dataclass
class Bucket:
    """Fills by ``per_minute`` each minute, and holds no more than that; it may fall below zero."""

    per_minute: int
    level: float
    filled_s: float

    def wait_s(self, now_s: float, amount: float) -> float:
        """How long until ``amount`` is in it."""
        self._fill(now_s)
        return max(0.0, amount - self.level) * 60 / self.per_minute if self.per_minute else 0.0

    def take(self, now_s: float, amount: float) -> None:
        self._fill(now_s)
        self.level -= amount

    def _fill(self, now_s: float) -> None:
        gained = (now_s - self.filled_s) * self.per_minute / 60
        self.level = min(float(self.per_minute), self.level + gained)
        self.filled_s = now_s


class Tenants:
    """Keys and quotas. Without any key everybody is the tenant "" and has ``default``'s quota."""

    def __init__(self, keys: Keys, default: QuotaConfig, clock: Clock) -> None:
        self._keys = keys.tenants
        self._clock = clock
        self._buckets = {
            name: (
                Bucket(quota.requests_per_minute, quota.requests_per_minute, clock()),
                Bucket(quota.tokens_per_minute, quota.tokens_per_minute, clock()),
            )
            for name, quota in {"": default, **keys.quotas}.items()
        }

    @property
    def open(self) -> bool:
        return not self._keys

    def tenant_of(self, authorization: str) -> str:
        """Whose key a header ``Authorization: Bearer KEY`` carries. Raises ``Unauthorized``."""
        if self.open:
            return ""
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = ""
        known = False
        for other, name in self._keys.items():
            if hmac.compare_digest(digest, other):
                found, known = name, True
        if not known or scheme.lower() != "bearer":
            raise Unauthorized(
                "no API key" if not authorization else "this API key is not known",
                expected="Authorization: Bearer KEY",
            )
        return found

    def admit(self, tenant: str, prompt_tokens: int) -> None:
        """Count one request of ``prompt_tokens``. Raises ``QuotaExceeded``."""
        requests, tokens = self._buckets[tenant]
        now_s = self._clock()
        for bucket, amount, what in (
            (requests, 1.0, "requests"),
            (tokens, min(1.0, tokens.per_minute), "tokens"),
        ):
            if wait_s := bucket.wait_s(now_s, amount):
                raise QuotaExceeded(
                    f"the quota of {what} is used up",
                    got=f"more than {bucket.per_minute} {what} a minute",
                    fix=f"try again in {wait_s:.0f} s",
                    retry_after_s=wait_s,
                )
        requests.take(now_s, 1)
        tokens.take(now_s, prompt_tokens)

    def charge(self, tenant: str, generated_tokens: int) -> None:
        """Count tokens of an answer."""
        self._buckets[tenant][1].take(self._clock(), generated_tokens)


def read_keys(keys_file: str, from_environment: str, default: QuotaConfig) -> Keys:
    """Those of a keys file (a YAML of ``KeysConfig``) and of ``NAME:KEY,NAME:KEY``.

    Raises ``ConfigError``.
    """
    keys: dict[bytes, str] = {}
    quotas: dict[str, QuotaConfig] = {}
    if keys_file:
        for tenant in load_config(KeysConfig, Path(keys_file)).value.tenants:
            quotas[tenant.name] = tenant
            for text in tenant.sha256:
                keys[_digest(text, tenant.name)] = tenant.name
    for at, entry in enumerate(filter(None, from_environment.split(","))):
        name, _, key = entry.strip().partition(":")
        if not name or not key:
            raise ConfigError(
                f"entry {at + 1} of the API keys in the environment is none",
                expected="NAME:KEY,NAME:KEY",
            )
        keys[hashlib.sha256(key.encode()).digest()] = name
        quotas.setdefault(name, default)
    return Keys(keys, quotas)


def _digest(text: str, tenant: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ConfigError(
            f"a key of tenant {tenant} is no SHA-256",
            got=f"{len(text)} characters",
            expected="64 hexadecimal digits",
            fix="printf %s KEY | sha256sum",
        )
    return digest

"""Which adapters may be asked for, by name."""

from __future__ import annotations

from collections.abc import Sequence

from serving.errors import InvalidRequest, ModelNotFound
from serving.lora.facts import AdapterFacts
from serving.request import Request

LONGEST_NAME = 200


class Registry:
    """Names and what they mean now; requests go on with what a name meant when they came."""

    def __init__(self) -> None:
        self._facts: dict[str, AdapterFacts] = {}

    def assign(self, facts: AdapterFacts) -> None:
        """``facts.name`` means this adapter from now on."""
        self._facts[facts.name] = facts

    def remove(self, name: str) -> AdapterFacts:
        """Raises ``ModelNotFound``."""
        facts = self.find(name)
        del self._facts[name]
        return facts

    def find(self, name: str, digest: str = "") -> AdapterFacts:
        """What ``name`` means, if it is of ``digest``, where one is given. Raises
        ``ModelNotFound``."""
        facts = self._facts.get(name)
        if facts is None or digest not in ("", facts.digest):
            known = ", ".join(sorted(self._facts)[:8]) or "none is loaded"
            raise ModelNotFound(
                f"there is no adapter {name} here",
                expected=f"an adapter that is loaded: {known}",
                fix="POST /v1/load_lora_adapter, or GET /v1/models for what is there",
                param="model",
            )
        return facts

    def of(self, request: Request) -> AdapterFacts | None:
        """What ``request`` asks for, of the digest that it gives; None is the base model.

        Raises ``ModelNotFound``.
        """
        if not request.adapter:
            return None
        return self.find(request.adapter, request.adapter_digest)

    def get(self, name: str) -> AdapterFacts | None:
        return self._facts.get(name)

    def all(self) -> Sequence[AdapterFacts]:
        """By name."""
        return [self._facts[name] for name in sorted(self._facts)]


def check_name(name: str) -> None:
    """Raise ``InvalidRequest`` for what could not be asked for by ``base:NAME``."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise InvalidRequest(
            "this is no name for an adapter",
            got=repr(name[:LONGEST_NAME]),
            expected=f"1 to {LONGEST_NAME} printable characters, no space at either end",
            param="lora_name",
        )

"""What ingress and replicas tell each other; plain values, since exceptions do not travel well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.engine.protocol import EngineFacts, EngineLoad
from serving.errors import (
    ContextTooLong,
    EngineDead,
    InvalidAdapter,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestError,
    ServingError,
)
from serving.lora.placement import Wanted
from serving.request import Delta, Request

REFUSALS: dict[str, type[ServingError]] = {
    cls.__name__: cls
    for cls in (
        *(ContextTooLong, InvalidAdapter, InvalidRequest, ModelNotFound),
        *(EngineDead, Overloaded),
    )
}

DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Ticket:
    """What the router goes by; the first argument of every call to a replica.

    ``replica``: the only one that will do, or empty; where it is no more, some other one says so.
    ``avoid``: those that failed this request.
    ``full``: those that had no place for it, and come last. ``tokens``: what it may come to
    compute. ``probe``: it asks how replicas are, one after the other. ``picks``: it asks where the
    request is to go, which then goes there past the router. ``wanted``: what placement goes by.
    ``sender`` and ``number``: by which replicas say what they have seen; each sender counts up.
    """

    replica: str = ""
    avoid: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()
    tokens: int = 0
    probe: bool = False
    picks: bool = False
    wanted: Wanted = Wanted()
    sender: str = ""
    number: int = 0


def in_brief(digest: str) -> str:
    """As standings and tickets name an adapter: Ray hands all of them to every ingress, twice a
    second."""
    return digest[:DIGEST_CHARACTERS]


@dataclass(frozen=True)
class Standing:
    """What the router gets to see of a replica. ``number``: counts up with each.

    ``running``, ``queued``, ``resident``, ``host`` and ``most`` as in ``ReplicaState``.
    ``answer_tokens``: of answers of late, on average; 0 for none. ``seen``: by sender, the number
    of the newest ticket that came here.
    """

    number: int
    tokens_in_flight: int
    running: tuple[int, ...] = ()
    queued: tuple[tuple[int, int], ...] = ()
    resident: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    most: int = 64
    answer_tokens: float = 0.0
    seen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A ``ServingError`` in parts."""

    kind: str
    what: str
    got: str = ""
    expected: str = ""
    fix: str = ""
    param: str = ""
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, error: ServingError) -> Refusal:
        kind = next(name for name, known in REFUSALS.items() if isinstance(error, known))
        return cls(
            kind,
            error.what,
            error.got,
            error.expected,
            error.fix,
            error.param if isinstance(error, RequestError) else "",
            error.retry_after_s if isinstance(error, Overloaded) else 0.0,
        )

    def error(self) -> ServingError:
        known = REFUSALS[self.kind]
        if known is Overloaded:
            return Overloaded(
                self.what, retry_after_s=self.retry_after_s, got=self.got, fix=self.fix
            )
        parts = {"got": self.got, "expected": self.expected, "fix": self.fix}
        if issubclass(known, RequestError):
            return known(self.what, **parts, param=self.param)
        return known(self.what, **parts)


@dataclass(frozen=True)
class Admission:
    """Which replica has the request, or why not."""

    replica: str
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Door:
    """Where a replica takes requests past Ray Serve, from who knows ``secret``.

    ``port`` is 0 where it does not.
    """

    replica: str
    host: str = ""
    port: int = 0
    secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Submission:
    """A request for a replica's door; the ``Admitted`` with the same number answers it."""

    number: int
    request: Request
    ticket: Ticket = Ticket()


@dataclass(frozen=True)
class Admitted:
    number: int
    admission: Admission


@dataclass(frozen=True)
class Cancellation:
    request_ids: tuple[str, ...]


@dataclass(frozen=True)
class Priorities:
    """Of requests that a replica has, from now on."""

    of: Mapping[str, int]


@dataclass(frozen=True)
class Step:
    """What a replica made since the last message, for all streams of one ingress together.

    The first message of a stream is empty: it says that the replica listens. ``dead``: nothing more
    will come of what it had.
    """

    load: EngineLoad
    deltas: tuple[Delta, ...] = ()
    dead: Refusal | None = None


@dataclass(frozen=True)
class AdapterId:
    """What a name means: an adapter of this digest and rank."""

    digest: str
    rank: int


@dataclass(frozen=True)
class Report:
    """How a replica is. ``adapters``: by name. ``dead``: why it can answer nothing."""

    replica: str
    facts: EngineFacts
    load: EngineLoad
    adapters: Mapping[str, AdapterId]
    dead: Refusal | None = None


@dataclass(frozen=True)
class AdapterChange:
    """What a replica made of an adapter that was to be loaded or unloaded."""

    replica: str
    adapter: AdapterId = AdapterId("", 0)
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Vectors:
    """Embeddings, or why there are none."""

    vectors: tuple[tuple[float, ...], ...] = ()
    refusal: Refusal | None = None

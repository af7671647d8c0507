"""Every error that serving raises on purpose.

ServingError                  a ``HecateError``: what, got, expected, fix
├── EngineDead                the engine cannot go on; the replica has to be replaced
└── RequestError              one request cannot be served, and others can
    ├── InvalidRequest        it asks for what does not exist or does not fit
    │   ├── ContextTooLong    prompt and answer do not fit the model, or the memory
    │   └── InvalidAdapter    a folder that holds no adapter of this model
    ├── ModelNotFound         no such model or adapter here
    ├── Unauthorized          no key, or one that is not known
    ├── QuotaExceeded         its tenant has used what it may; ``retry_after_s``
    └── Overloaded            too much is waiting; ``retry_after_s``

What these become in HTTP is decided in ``serving.api`` alone.
"""

from __future__ import annotations

from hecate.errors import HecateError


class ServingError(HecateError):
    """Something of serving went wrong."""


class EngineDead(ServingError):
    """The engine cannot go on; every request in it has failed."""


class RequestError(ServingError):
    """One request cannot be served. ``param``: the field of it that is to blame, if one is."""

    def __init__(
        self, what: str, *, got: str = "", expected: str = "", fix: str = "", param: str = ""
    ) -> None:
        super().__init__(what, got=got, expected=expected, fix=fix)
        self.param = param


class InvalidRequest(RequestError):
    """A field with a value that cannot be."""


class ContextTooLong(InvalidRequest):
    """More tokens than the model attends to, or than the memory for keys and values holds."""


class InvalidAdapter(InvalidRequest):
    """A folder without an adapter in it, or with one that does not fit the model."""


class ModelNotFound(RequestError):
    """A model or adapter that is not served here."""


class Unauthorized(RequestError):
    """No key, or one that is not known."""


class _Later(RequestError):
    def __init__(self, what: str, *, retry_after_s: float, got: str = "", fix: str = "") -> None:
        super().__init__(what, got=got, fix=fix)
        self.retry_after_s = retry_after_s


class QuotaExceeded(_Later):
    """The tenant's requests or tokens are used up for now."""


class Overloaded(_Later):
    """More is waiting than would be answered in time."""

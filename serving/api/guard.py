"""What stands before every route: the key, the size of the body, and a count of what came of it."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.http_errors import HttpError, http_error, plain_error
from serving.api.metrics import Metrics
from serving.api.tenants import Tenants
from serving.errors import Unauthorized

# The page has no data of its own, and who restarts a dead replica has no key.
OPEN = frozenset({"/", "/health"})


class Guard:
    """Refuses what has no key, by default on every path; tells the routes whose request it is."""

    def __init__(
        self, app: ASGIApp, *, tenants: Tenants, metrics: Metrics, max_body_bytes: int
    ) -> None:
        self._app = app
        self._tenants = tenants
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        headers = {key: value for key, value in scope["headers"]}
        try:
            tenant = ""
            if scope["path"] not in OPEN:
                authorization = headers.get(b"authorization", b"").decode("latin-1")
                tenant = self._tenants.tenant_of(authorization)
        except Unauthorized as error:
            await _refuse(counted, http_error(error))
            return
        scope.setdefault("state", {})["tenant"] = tenant
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            message = f"the body has {int(length)} bytes, at most {self._max_body_bytes} may be"
            await _refuse(counted, plain_error(413, message))
            return
        await self._app(scope, self._bounded(receive), counted)

    def _bounded(self, receive: Receive) -> Receive:
        """A body without a length is cut where it grows too large, and is no JSON then."""
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._max_body_bytes:
                    return {"type": "http.request", "body": b"", "more_body": False}
            return message

        return bounded


async def _refuse(send: Send, error: HttpError) -> None:
    headers = [(key.encode(), value.encode()) for key, value in error.headers.items()]
    headers.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error.body).encode()})

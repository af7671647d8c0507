"""The routes by which applications tell of themselves, and what a request's tags are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from serving.api.backend import Answerer
from serving.api.schemas import InstanceBody, UnitBody
from serving.errors import InvalidRequest
from serving.scheduling.applications.tags import HEADERS, Tags, read


class Applications(Protocol):
    """Whoever orders requests by what their applications may still need."""

    def tagged(self, tags: Tags) -> Answerer:
        """Answers requests with ``tags``."""
        ...

    def unit_began(self, tags: Tags, tenant: str, run: str) -> None:
        """A unit that is no request."""
        ...

    def unit_ended(self, tags: Tags, tenant: str, run: str, *, failed: bool) -> bool:
        """Whether it was going on."""
        ...

    def end(self, tags: Tags, tenant: str) -> bool:
        """Whether the instance was under way; what of it is not answered yet still is."""
        ...

    def told(self, tenant: str) -> dict[str, Any]:
        """A tenant's classes, and its instances under way, as JSON."""
        ...

    def figures(self) -> Mapping[str, float]:
        """For Prometheus, by names of which counters end in ``_total``."""
        ...


def fields_of(headers: Mapping[str, str], application: object) -> dict[str, object]:
    """Tags as they were sent: in headers, and in a body's ``application``, which goes first."""
    fields: dict[str, object] = {
        field: headers[header] for header, field in HEADERS.items() if header in headers
    }
    if isinstance(application, dict):
        return {**fields, **application}
    return fields if application is None else {**fields, "application": application}


class ApplicationRoutes:
    """``applications``: None where requests go by arrival alone."""

    def __init__(self, applications: Applications | None) -> None:
        self._applications = applications

    async def unit(self, body: UnitBody, http: HttpRequest) -> JSONResponse:
        tags = _tags(body, unit=body.unit, kind=body.kind)
        tenant = str(http.state.tenant)
        if body.event == "begin":
            self._there.unit_began(tags, tenant, body.run)
            return JSONResponse({"begun": True})
        ended = self._there.unit_ended(tags, tenant, body.run, failed=body.failed)
        return JSONResponse({"ended": ended})

    async def end(self, body: InstanceBody, http: HttpRequest) -> JSONResponse:
        return JSONResponse({"ended": self._there.end(_tags(body), str(http.state.tenant))})

    async def all(self, http: HttpRequest) -> JSONResponse:
        return JSONResponse(self._there.told(str(http.state.tenant)))

    @property
    def _there(self) -> Applications:
        if self._applications is None:
            raise InvalidRequest(
                "applications are not followed here",
                got="applications.policy none",
                fix="set applications.policy, with one replica of the ingress",
            )
        return self._applications


def _tags(body: InstanceBody, **more: str) -> Tags:
    """Raises ``InvalidRequest``: whoever tells of a unit gets to know if it is not understood."""
    try:
        return read({"class": body.application, "id": body.id, **more})
    except ValueError as error:
        raise InvalidRequest(str(error), param="class") from error

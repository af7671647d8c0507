"""The routes, over whatever ``Backend`` answers."""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from serving.api.answering import Answering
from serving.api.applications import ApplicationRoutes, Applications, fields_of
from serving.api.backend import Answerer, Backend
from serving.api.config import ApiConfig
from serving.api.connection import EventStream, unless_gone
from serving.api.guard import Guard
from serving.api.http_errors import HttpError, http_error, invalid_body, plain_error
from serving.api.metrics import Metrics
from serving.api.prompts import Prompts
from serving.api.rendering import ChatRendering, CompletionRendering, Echo, Head, Rendering
from serving.api.requests import (
    Caller,
    adapter_of,
    chat_request,
    completion_requests,
    no_model,
    room,
    tokens_of,
)
from serving.api.schemas import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    LoadAdapterBody,
    SampledBody,
    UnloadAdapterBody,
)
from serving.api.tenants import Clock, Tenants
from serving.errors import InvalidRequest, RequestError, ServingError
from serving.request import Request
from serving.scheduling.applications.tags import Reader

T = TypeVar("T")

LOG = logging.getLogger("serving.api")
PAGE = Path(__file__).parent / "page" / "index.html"
CLIENT_GONE = 499  # nobody reads it; nginx's name in the metrics
LONG_TEXT = 20_000  # characters that take the tokenizer longer than a step may wait


@dataclass(frozen=True)
class Serving:
    """What the routes work with. ``clock``: monotonic seconds; ``now``: seconds since 1970.
    ``applications``: who orders requests, if anybody does."""

    backend: Backend
    prompts: Prompts
    tenants: Tenants
    config: ApiConfig
    clock: Clock
    now: Clock
    applications: Applications | None = None


def build_api(serving: Serving) -> FastAPI:
    """The app: OpenAI's routes, ``/health``, ``/metrics`` and the page, behind the guard."""
    api = FastAPI(title="Hecate", version="1", docs_url=None, redoc_url=None)
    routes = _Routes(serving)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text} for status, text in _ERRORS.items()
    }
    api.get("/", response_class=HTMLResponse)(routes.page)
    api.get("/health", responses={503: {"description": _ERRORS[503]}})(routes.health)
    guarded: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/metrics", routes.metrics_text),
        ("GET", "/v1/models", routes.models),
        ("GET", "/v1/models/{model:path}", routes.model),
        ("POST", "/v1/completions", routes.completions),
        ("POST", "/v1/chat/completions", routes.chat),
        ("POST", "/v1/embeddings", routes.embeddings),
        ("GET", "/v1/applications", routes.applications.all),
        ("POST", "/v1/applications/units", routes.applications.unit),
        ("POST", "/v1/applications/end", routes.applications.end),
        ("POST", "/v1/load_lora_adapter", routes.load_adapter),
        ("POST", "/v1/unload_lora_adapter", routes.unload_adapter),
    ]
    for method, path, function in guarded:
        api.add_api_route(path, function, methods=[method], responses=errors, response_model=None)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(HTTPException, _on_http)
    api.add_exception_handler(ServingError, _on_error)
    api.add_exception_handler(Exception, _on_error)
    api.add_middleware(
        Guard,
        tenants=serving.tenants,
        metrics=routes.metrics,
        max_body_bytes=serving.config.max_body_bytes,
    )
    return api


_ERRORS = {
    400: "the request is wrong",
    401: "no key",
    404: "no such model",
    413: "the body is too large",
    429: "a quota is used up, or too much is waiting; see Retry-After",
    503: "the engine is dead",
}


class _Routes:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._backend = serving.backend
        self.applications = ApplicationRoutes(serving.applications)
        self._tags = Reader(LOG.warning)
        self.metrics = Metrics(serving.backend.loads, self._figures)

    async def page(self) -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    def _figures(self) -> Mapping[str, float]:
        found = self._serving.applications
        return {"malformed_tags_total": self._tags.malformed, **(found.figures() if found else {})}

    async def health(self) -> JSONResponse:
        self._backend.check()
        return JSONResponse({"status": "ok"})

    async def metrics_text(self) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self) -> JSONResponse:
        facts = self._backend.facts
        names = [facts.model, *(f"{facts.model}:{name}" for name in self._backend.adapters())]
        return JSONResponse({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, model: str) -> JSONResponse:
        adapter = adapter_of(model, self._backend.facts)
        if adapter and adapter not in self._backend.adapters():
            raise no_model(model, self._backend.facts)
        return JSONResponse(self._model(model))

    async def load_adapter(self, body: LoadAdapterBody) -> Response:
        self._may_load_adapters()
        if not body.load_inplace and body.lora_name in self._backend.adapters():
            raise InvalidRequest(
                f"there is an adapter {body.lora_name} already",
                fix="set load_inplace, or unload it first",
                param="lora_name",
            )
        await self._backend.load_adapter(body.lora_name, body.lora_path)
        return _said(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, body: UnloadAdapterBody) -> Response:
        self._may_load_adapters()
        await self._backend.unload_adapter(body.lora_name)
        return _said(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _may_load_adapters(self) -> None:
        if not self._serving.config.load_adapters:
            raise InvalidRequest(
                "adapters are not loaded by request here",
                got="api.load_adapters false",
                fix="put them into the folder that is watched",
            )

    async def completions(self, body: CompletionBody, http: HttpRequest) -> Response:
        caller = self._caller("cmpl", http)
        size = sum(len(prompt) for prompt in body.prompts)
        requests = await self._tokenized(
            size,
            lambda: completion_requests(body, caller, self._serving.prompts, self._backend.facts),
        )
        head = self._head(caller, body.model, logprobs=body.logprobs is not None)
        self._log(caller, body)
        echoed: list[Echo] = []
        if body.echo:
            texts = map(self._serving.prompts.text, body.prompts)
            echoed = [Echo(text, each.prompt) for text, each in zip(texts, requests, strict=True)]
        rendering = CompletionRendering(head, echoed, body.n, alone=body.max_tokens == 0)
        answering = self._answering(
            requests, rendering, self._answerer(body, http), with_tools=False, keep=body.n
        )
        return await self._respond(answering, bool(body.stream), body.include_usage, http)

    async def chat(self, body: ChatBody, http: HttpRequest) -> Response:
        caller = self._caller("chatcmpl", http)
        size = sum(len(message.text) for message in body.messages)
        request = await self._tokenized(
            size, lambda: chat_request(body, caller, self._serving.prompts, self._backend.facts)
        )
        head = self._head(caller, body.model, logprobs=bool(body.logprobs))
        self._log(caller, body)
        with_tools = bool(body.tools) and body.tool_choice != "none"
        rendering = ChatRendering(head)
        answering = self._answering(
            [request], rendering, self._answerer(body, http), with_tools=with_tools, keep=body.n
        )
        return await self._respond(answering, bool(body.stream), body.include_usage, http)

    async def embeddings(self, body: EmbeddingBody, http: HttpRequest) -> JSONResponse:
        facts = self._backend.facts
        if adapter_of(body.model, facts) or not facts.embeds:
            raise InvalidRequest(
                f"{body.model} gives no embeddings",
                expected=facts.model if facts.embeds else "a model that can",
                param="model",
            )
        prompts = self._serving.prompts
        tokens = await self._tokenized(
            sum(len(each) for each in body.inputs),
            lambda: [tokens_of(each, prompts, facts, "input") for each in body.inputs],
        )
        for each in tokens:
            room(each, facts)
        used = sum(len(each) for each in tokens)
        self._serving.tenants.admit(http.state.tenant, used)
        vectors = await self._backend.embed(tokens)
        data = [
            {"object": "embedding", "index": at, "embedding": _vector(vector, body.encoding_format)}
            for at, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": used, "total_tokens": used}
        return JSONResponse({"object": "list", "model": body.model, "data": data, "usage": usage})

    async def _respond(
        self, answering: Answering, stream: bool, include_usage: bool, http: HttpRequest
    ) -> Response:
        if stream:
            return EventStream(answering.chunks(include_usage=include_usage), _told, {})
        answer = await unless_gone(answering.whole(), http.receive)
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(answer)

    def _answerer(self, body: SampledBody, http: HttpRequest) -> Answerer:
        """Who answers it in its turn."""
        tags = self._tags.read(fields_of(http.headers, body.application))
        applications = self._serving.applications
        return self._backend if applications is None else applications.tagged(tags)

    def _answering(
        self,
        requests: list[Request],
        rendering: Rendering,
        answerer: Answerer,
        *,
        with_tools: bool,
        keep: int,
    ) -> Answering:
        serving = self._serving
        return Answering(
            requests,
            rendering,
            with_tools=with_tools,
            keep=keep,
            backend=answerer,
            tenants=serving.tenants,
            metrics=self.metrics,
            clock=serving.clock,
        )

    async def _tokenized(self, size: int, work: Callable[[], T]) -> T:
        """A long text is taken apart beside the event loop, which others wait for."""
        return work() if size < LONG_TEXT else await asyncio.to_thread(work)

    def _caller(self, prefix: str, http: HttpRequest) -> Caller:
        return Caller(f"{prefix}-{uuid.uuid4().hex}", str(http.state.tenant), self._serving.clock())

    def _head(self, caller: Caller, model: str, *, logprobs: bool) -> Head:
        return Head(
            caller.answer_id,
            int(self._serving.now()),
            model,
            logprobs,
            self._serving.prompts.token_text,
        )

    def _model(self, name: str) -> dict[str, Any]:
        facts = self._backend.facts
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "hecate",
            "root": facts.model,
            "parent": facts.model if name != facts.model else None,
            "max_model_len": facts.max_tokens,
        }

    def _log(self, caller: Caller, body: ChatBody | CompletionBody) -> None:
        if self._serving.config.log_prompts:
            LOG.info("%s asks %s", caller.answer_id, body.model_dump_json(exclude_unset=True))


def _said(text: str) -> Response:
    """In vLLM's words."""
    return Response(text, media_type="text/plain")


def _vector(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _told(error: Exception) -> HttpError:
    """``error`` as HTTP; what is a bug of ours is told to whoever runs the server."""
    if not isinstance(error, RequestError):
        LOG.error("a request failed", exc_info=error)
    return http_error(error)


def _json(error: HttpError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=dict(error.headers))


async def _on_error(http: HttpRequest, error: Exception) -> JSONResponse:
    return _json(_told(error))


async def _on_invalid(http: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _json(invalid_body(error.errors()))


async def _on_http(http: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _json(plain_error(error.status_code, str(error.detail)))

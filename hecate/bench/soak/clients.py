"""Requests over HTTP, each with a deadline, and clients that leave before their answer's end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from hecate.bench.soak.accounts import Outcome
from hecate.bench.soak.asks import Ask
from hecate.bench.soak.checks import Reply, Verdict, judge
from hecate.bench.soak.meaning import Meanings
from hecate.bench.soak.references import BASE

LAST_EVENT = b"data: [DONE]"


class _Left(Exception):
    """The client went away, as it was to."""


class Clients:
    """``meanings``: of adapters' names. ``outcomes``: of all requests so far."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, meanings: Meanings, deadline_s: float
    ) -> None:
        self._session = session
        self._url = url
        self._meanings = meanings
        self._deadline_s = deadline_s
        self.outcomes: list[Outcome] = []
        self.under_way = 0

    async def send(self, ask: Ask) -> Outcome:
        """What came of ``ask``; never raises."""
        sent_s = time.monotonic()
        self.under_way += 1
        status = 0
        try:
            async with asyncio.timeout(self._deadline_s):
                reply, first_s = await self._exchange(ask)
            status = reply.status
            contents = frozenset({BASE})
            if ask.adapter:
                contents = self._meanings.during(ask.adapter, sent_s, first_s)
            verdict = judge(reply, ask.wanted, contents)
        except _Left:
            verdict = Verdict("left")
        except TimeoutError:
            verdict = Verdict("hung", f"no end after {self._deadline_s:.0f} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            verdict = Verdict("unclear", f"{type(error).__name__}: {error}")
        finally:
            self.under_way -= 1
        seconds = time.monotonic() - sent_s
        outcome = Outcome(ask.what, verdict.kind, verdict.why, status, sent_s, seconds)
        self.outcomes.append(outcome)
        return outcome

    async def text(self, path: str, key: str) -> str:
        """The body of a GET."""
        headers = {"authorization": f"Bearer {key}"}
        async with asyncio.timeout(self._deadline_s):
            async with self._session.get(self._url + path, headers=headers) as response:
                return await response.text()

    async def _exchange(self, ask: Ask) -> tuple[Reply, float]:
        """The reply, and when it began."""
        if not ask.leave_s:
            return await self._reply(ask)
        try:
            async with asyncio.timeout(ask.leave_s):
                return await self._reply(ask)
        except TimeoutError as error:
            raise _Left from error

    async def _reply(self, ask: Ask) -> tuple[Reply, float]:
        headers = {"content-type": "application/json"}
        if ask.key:
            headers["authorization"] = f"Bearer {ask.key}"
        data = json.dumps(dict(ask.body)) if isinstance(ask.body, Mapping) else ask.body
        url = self._url + ask.path
        async with self._session.request(ask.method, url, data=data, headers=headers) as response:
            streamed = response.headers.get("content-type", "").startswith("text/event-stream")
            if response.status == 200 and streamed:
                return await self._stream(ask, response)
            text = await response.text()
            again = response.headers.get("retry-after", "")
            return Reply(response.status, _json(text), again), time.monotonic()

    async def _stream(self, ask: Ask, response: aiohttp.ClientResponse) -> tuple[Reply, float]:
        events: list[Any] = []
        first_s = time.monotonic()
        async for line in response.content:
            if line.startswith(LAST_EVENT):
                return Reply(200, events=tuple(events), ended=True, streamed=True), first_s
            if line.startswith(b"data: "):
                events.append(_json(line[6:].decode()))
                if ask.leave_events and len(events) >= ask.leave_events:
                    raise _Left
        return Reply(200, events=tuple(events), streamed=True), first_s


def _json(text: str) -> Any:
    """The value, or the text where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text

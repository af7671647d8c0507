"""Many clients at once, adapters that come and go, bursts, and moments without a request."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from hecate.bench.soak.accounts import Outcome, Quiet
from hecate.bench.soak.asks import LONG_TOKENS, Ask, Asks
from hecate.bench.soak.checks import Wanted
from hecate.bench.soak.clients import Clients
from hecate.bench.soak.meaning import GONE, Meanings
from hecate.bench.soak.references import References

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
POLL_S = 0.25
HEARD_S = 3.0  # by then each replica has been asked how it is since
_METRIC = re.compile(r'^hecate_engine_(\w+)\{replica="([^"]*)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Pressure:
    """``clients``: of them at once, each of whom pauses ``pause_s`` on average; every ``burst_s``
    ``burst`` more come all at once."""

    clients: int = 12
    pause_s: float = 0.5
    burst: int = 70
    burst_s: float = 40.0


class Load:
    """Runs until ``stop``; ``quiet`` interrupts it."""

    def __init__(
        self,
        clients: Clients,
        make_asks: Callable[[random.Random], Asks],
        meanings: Meanings,
        references: References,
        *,
        names: Sequence[str],
        key: str,
        pressure: Pressure,
        seed: int,
    ) -> None:
        self._clients = clients
        self._make_asks = make_asks
        self._meanings = meanings
        self._references = references
        self._names = names
        self._key = key
        self._pressure = pressure
        self._seed = seed
        self._open = asyncio.Event()
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []
        self.quiets: list[Quiet] = []

    def start(self) -> None:
        self._open.set()
        work: list[Coroutine[Any, Any, None]] = []
        for number in range(self._pressure.clients):
            work.append(self._client(self._drawn(number)))
        for number, name in enumerate(self._names):
            work.append(self._change(name, self._drawn(1000 + number)))
        work.append(self._bursts(self._drawn(2000)))
        self._tasks = [asyncio.ensure_future(each) for each in work]

    async def stop(self) -> None:
        """No more requests; returns when those under way have ended."""
        self._stopped = True
        self._open.set()
        await asyncio.gather(*self._tasks)

    async def loads(self) -> dict[str, dict[str, float]]:
        """What each replica says of itself, by name."""
        found: dict[str, dict[str, float]] = {}
        for name, replica, value in _METRIC.findall(
            await self._clients.text("/metrics", self._key)
        ):
            found.setdefault(replica, {})[name] = float(value)
        return found

    async def idle(self, most_s: float) -> tuple[float, int]:
        """Seconds until nothing runs or waits, and blocks that are held then for no one; after
        ``most_s`` whatever is held counts."""
        begun_s = time.monotonic()
        await asyncio.sleep(HEARD_S)
        while True:
            loads = (await self.loads()).values()
            held = int(sum(one["blocks_used"] - one["blocks_cached"] for one in loads))
            busy = any(one["running"] or one["waiting"] for one in loads)
            spent_s = time.monotonic() - begun_s
            if (loads and not busy and not held) or spent_s > most_s:
                return spent_s, held
            await asyncio.sleep(POLL_S)

    async def quiet(self, most_s: float) -> None:
        """Let all that is under way end, and see what is held then."""
        self._open.clear()
        begun_s = time.monotonic()
        while self._clients.under_way:
            await asyncio.sleep(POLL_S)
        idle_s, leaked = await self.idle(most_s)
        self._open.set()
        self.quiets.append(Quiet(begun_s, time.monotonic() - begun_s, idle_s, leaked))

    async def abandon(self, count: int, most_s: float) -> float:
        """``count`` clients ask for long answers and leave; the share of them that is made."""
        draw = self._drawn(3000)
        asks = self._make_asks(draw)
        sent = [asks.long(draw.uniform(0.001, 0.2)) for _ in range(count)]
        before = await self._generated()
        await asyncio.gather(*(self._clients.send(ask) for ask in sent))
        await self.idle(most_s)
        return (await self._generated() - before) / (count * LONG_TOKENS)

    async def _generated(self) -> float:
        return sum(one["generated_tokens_total"] for one in (await self.loads()).values())

    def _drawn(self, number: int) -> random.Random:
        return random.Random(self._seed * 10_000 + number)

    async def _client(self, draw: random.Random) -> None:
        asks = self._make_asks(draw)
        while await self._go_on():
            await self._clients.send(asks.next())
            await asyncio.sleep(draw.expovariate(1 / self._pressure.pause_s))

    async def _bursts(self, draw: random.Random) -> None:
        asks = self._make_asks(draw)
        due_s = time.monotonic() + self._pressure.burst_s / 2
        while await self._go_on():
            await asyncio.sleep(POLL_S)
            if time.monotonic() >= due_s and self._open.is_set():
                due_s = time.monotonic() + self._pressure.burst_s
                together = [asks.greedy() for _ in range(self._pressure.burst)]
                await asyncio.gather(*(self._clients.send(ask) for ask in together))

    async def _change(self, name: str, draw: random.Random) -> None:
        """Load, ask, load another content or unload, ask again."""
        asks = self._make_asks(draw)
        contents = list(self._references.adapters)
        while await self._go_on():
            content = draw.choice([one for one in contents if {one} != self._meanings.now(name)])
            if draw.random() < 0.3 and self._meanings.now(name) != {GONE}:
                content = GONE
            await self._mean(name, content)
            for _ in range(draw.randint(1, 4)):
                if not await self._go_on():
                    return
                await self._clients.send(asks.greedy(name))
            await asyncio.sleep(draw.uniform(0.5, 4.0))

    async def _mean(self, name: str, content: str) -> Outcome:
        """Have ``name`` mean ``content``."""
        self._meanings.begin(name, content, time.monotonic())
        body = {"lora_name": name}
        if content != GONE:
            body["lora_path"] = str(self._references.adapters[content])
        unsure = len(self._meanings.now(name) - {content}) > 1
        statuses = frozenset({404}) if content == GONE and unsure else frozenset[int]()
        wanted = Wanted(whole=_success, statuses=statuses)
        what, path = ("unload adapter", UNLOAD) if content == GONE else ("load adapter", LOAD)
        outcome = await self._clients.send(Ask(what, path, body, wanted, self._key))
        if outcome.kind == "answered" or outcome.status == 404:
            self._meanings.done(name, content, time.monotonic())
        return outcome

    async def _go_on(self) -> bool:
        """Waits while it is quiet; false when all is to end."""
        await self._open.wait()
        return not self._stopped


def _success(value: Any) -> str:
    return "" if isinstance(value, str) and value.startswith("Success") else f"{value!r:.80}"

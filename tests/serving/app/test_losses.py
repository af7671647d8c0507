"""The app as ``hecate serve`` runs it, while replicas come, go and are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from patience import PATIENCE_S, until
from rule_engine import HOLD, rule_engine, save_toy_tokenizer

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402

from hecate.bench.soak.watched import Processes  # noqa: E402
from serving.app import ServingConfig, serve_until_stopped  # noqa: E402
from serving.app.config import HttpConfig, IngressConfig, ReplicasConfig  # noqa: E402
from serving.app.launch import APP, free_http  # noqa: E402
from serving.app.messages import Door, Report, Ticket  # noqa: E402
from serving.app.replicas import Replicas  # noqa: E402
from serving.engine.config import EngineConfig  # noqa: E402
from serving.errors import EngineDead  # noqa: E402
from serving.request import Delta, Request, Sampling  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEP_S = 0.05
HOLD_STEPS = 200
WAITING = f"{HOLD} hello there"
TARGET = 8000  # tokens in flight, of each replica
PRESSING = "hello there"  # and then no end
LONG = "hello there " * 60  # 300 tokens: 15 s
MOST = {PRESSING: 16_000, LONG: 310, WAITING: 20}  # tokens of an answer: one that presses will do


class Stream(threading.Thread):
    """Reads one answer, to its end or until it is left."""

    def __init__(self, url: str, prompt: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._ask = {
            "model": "toy",
            "prompt": prompt,
            "max_tokens": MOST[prompt],
            "stream": True,
            "extra_body": {"ignore_eos": prompt == PRESSING},
        }
        self.text = ""
        self.error: openai.OpenAIError | None = None
        self._left = False
        self.start()

    def __enter__(self) -> Stream:
        until(lambda: self.text or self.error, "the first piece")
        assert self.error is None
        return self

    def __exit__(self, *raised: object) -> None:
        self._left = True
        self.end()

    def run(self) -> None:
        client = openai.OpenAI(
            base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        )
        try:
            with client, client.completions.create(**self._ask) as chunks:  # type: ignore[call-overload]
                for chunk in chunks:
                    self.text += chunk.choices[0].text
                    if self._left:
                        return
        except openai.OpenAIError as error:
            self.error = error
        except httpx.HTTPError as error:  # broken off, which openai does not make one of its own
            self.error = openai.APIConnectionError(message=str(error), request=error.request)

    def end(self) -> Stream:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "a client hangs"
        return self


class App:
    def __init__(self, url: str) -> None:
        self.url = url
        self.handle = serve.get_deployment_handle("engine", APP)
        self._processes = Processes(os.getpid())

    def stream(self, prompt: str) -> Stream:
        return Stream(self.url, prompt)

    def on_both(self) -> list[Stream]:
        """Streams that have begun, of two replicas that are pressed. They end later than that."""
        with self.stream(PRESSING):  # the other replica then has one such, too
            self.runs(2)
            streams: list[Stream] = []
            while not streams or min(self.loads("running").values()) < 2:
                assert len(streams) < 6, "they all go to one replica"
                streams.append(self.stream(LONG).__enter__())
                self.runs(2 + len(streams))
        return streams

    def runs(self, count: int) -> None:
        """Returns once so many requests are known to run."""
        until(lambda: sum(self.loads("running").values()) == count, f"{count} requests")

    def loads(self, name: str) -> dict[str, float]:
        """A figure of each replica that the ingress hears of."""
        lines = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text.splitlines()
        found = (line.split() for line in lines if line.startswith(f"hecate_engine_{name}{{"))
        return {label.split('"')[1]: float(value) for label, value in found}

    @contextmanager
    def pressed(self) -> Iterator[None]:
        """Load that wants two replicas, and has them; it is on the first."""
        with self.stream(PRESSING):
            # One of before may still be going, and be heard of.
            until(lambda: self.states() == {"RUNNING": 2}, "a second replica")
            until(lambda: len(self.loads("running")) == 2, "word of it")
            yield

    def states(self) -> dict[str, int]:
        """How many engine replicas are in which of Serve's states."""
        engine = serve.status().applications[APP].deployments["engine"]
        return {state: count for state, count in engine.replica_states.items() if count}

    def engines(self) -> list[int]:
        """Their process ids, the oldest first."""
        return self._processes.engines()

    def ingress(self) -> int:
        (found,) = [one.process_id for one in self._processes.samples() if one.role == "ingress"]
        return found

    def doors(self) -> dict[str, Door]:
        """Of the replicas that the ingress hears of."""
        doors = {}
        for name in self.loads("running"):
            door: Door = self.handle.door.remote(Ticket(replica=name)).result(timeout_s=60)
            if door.replica == name:
                doors[name] = door
        return doors

    def links(self) -> list[str]:
        """The replicas that the ingress is connected to, as often as it is."""
        ports = {door.port: name for name, door in self.doors().items()}
        connected = psutil.Process(self.ingress()).net_connections(kind="tcp")
        ends = [one.raddr.port for one in connected if one.status == "ESTABLISHED" and one.raddr]
        return sorted(ports[port] for port in ends if port in ports)

    def logged(self) -> str:
        """What the ingress has written into Serve's log."""
        folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
        return "".join(file.read_text() for file in folder.glob("*ingress*.log"))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = save_toy_tokenizer(tmp_path_factory.mktemp("toy"))
    http = free_http(HttpConfig(port=0))
    config = ServingConfig(
        http=http,
        engine=EngineConfig(model=str(folder), name="toy"),
        replicas=ReplicasConfig(
            max=2,
            target_tokens=TARGET,
            upscale_delay_s=0,
            downscale_delay_s=0,
            num_cpus=0.1,
            health_period_s=1,
            drain_s=120,
        ),
        ingress=IngressConfig(watch_s=0.2, silence_s=20),
    )
    build = partial(rule_engine, step_s=STEP_S, most=64, max_tokens=20_000, hold_steps=HOLD_STEPS)
    ready, stop = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        try:
            serve_until_stopped(config, build, on_ready=lambda url: ready.set(), stop=stop)
        except Exception as error:
            failed.append(error)
            ready.set()

    before = dict(os.environ)
    running = threading.Thread(target=run)
    running.start()
    try:
        assert ready.wait(PATIENCE_S) and not failed, failed
        app = App(f"http://{http.host}:{http.port}")
        yield app
        app.handle.shutdown()  # it would tell Ray Serve of its requests until this process ends
    finally:
        stop.set()
        running.join(PATIENCE_S)
        os.environ.clear()
        os.environ.update(before)


def test_a_killed_replica_costs_no_more_than_the_answers_that_it_had_begun(app: App) -> None:
    with app.pressed():
        begun = [app.stream(LONG).__enter__() for _ in range(2)]
        waiting = [app.stream(WAITING) for _ in range(4)]
        app.runs(1 + len(begun) + len(waiting))
        assert len(app.links()) == 2
        other, victim = app.engines()  # all but what presses goes to the second one

        def kill() -> None:
            os.kill(victim, signal.SIGKILL)

        lost = asyncio.run(asyncio.wait_for(of_this_process(app, kill), PATIENCE_S))
        assert "lost" in str(lost)
        for stream in begun:
            assert isinstance(stream.end().error, openai.APIError) and "lost" in str(stream.error)
            assert LONG.startswith(stream.text) and stream.text != LONG
        for stream in waiting:
            assert stream.end().error is None and stream.text == WAITING
        # At once, though Ray Serve could keep a thousand lines to itself.
        assert "lost its replica, trying another" in app.logged()
        until(lambda: len(app.engines()) == 2 and other in app.engines(), "another replica")
        until(lambda: len(app.links()) == len(set(app.links())) == 2, "a connection to it")
    until(lambda: not any(app.loads("running").values()), "idle engines")


async def of_this_process(app: App, kill: Any) -> EngineDead:
    """As of another ingress: what it is told of what it had begun where ``kill`` strikes, while all
    else is answered and nothing is kept of any of it."""
    backend = Replicas(app.handle, IngressConfig(watch_s=0.1))
    await backend.start()

    async def heard_of(count: int) -> None:
        while len(backend.loads()) != count or len(backend._links._links) != count:
            await asyncio.sleep(0.05)

    await heard_of(2)
    long = tuple(range(10, 110))
    streams: list[AsyncIterator[Delta]] = []
    while len({stream.replica for stream in backend._streams.values()}) < 2:
        request = Request(f"begun {len(streams)}", long, Sampling(8000))
        streams.append(await backend.open(request))
        assert (await anext(streams[-1])).tokens == (10,)
        assert len(streams) < 40, "they all go to one replica"
    kill()

    async def rest(stream: AsyncIterator[Delta]) -> int:
        return sum([len(delta.tokens) async for delta in stream])

    made = await asyncio.gather(*map(rest, streams), return_exceptions=True)
    lost = [each for each in made if isinstance(each, EngineDead)]
    assert lost and made.count(100) == len(made) - len(lost) > 0
    for number in range(len(streams)):
        await backend.close(f"begun {number}")
    late = await backend.open(Request("late", long, Sampling(100)))
    assert await rest(late) == 100
    await heard_of(2)  # the replacement among them
    assert not backend._streams and not backend._listening and not backend._links._making
    assert set(backend._links._links) == {name for name, _ in backend.loads()}
    return lost[0]


def test_silence_takes_a_replica_away_once_it_has_answered(app: App) -> None:
    with app.pressed():
        begun = app.on_both()
    until(lambda: "STOPPING" in app.states(), "a replica that is to go")
    early = [stream.is_alive() for stream in begun]
    for stream in begun:
        assert stream.end().error is None and stream.text == LONG
    assert all(early)
    until(lambda: app.states() == {"RUNNING": 1}, "a replica alone")
    until(lambda: len(app.links()) == len(app.loads("running")) == 1, "one connection")


def test_when_the_ingress_dies_what_it_asked_for_is_cancelled(app: App) -> None:
    name = next(iter(app.loads("running")))

    def report() -> Report:
        found: Report = app.handle.report.remote(Ticket(replica=name)).result(timeout_s=60)
        return found

    before = report().load.generated_tokens_total
    streams = [app.stream(LONG).__enter__() for _ in range(4)]
    gone = app.ingress()
    os.kill(gone, signal.SIGKILL)
    for stream in streams:
        assert stream.end().error is not None
    until(lambda: not report().load.running, "an idle engine")
    assert report().load.generated_tokens_total - before < 4 * 300

    def healthy() -> bool:
        try:
            return httpx.get(f"{app.url}/health", timeout=PATIENCE_S).status_code == 200
        except httpx.TransportError:
            return False

    until(healthy, "another ingress")
    assert app.ingress() != gone
    assert app.stream(WAITING).end().text == WAITING

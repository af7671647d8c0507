"""Applications on the page, in a browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import Server
from devtools import tab
from rule_engine import RuleEngine

from serving.applications import ApplicationsConfig, OrderedApplications
from serving.client import Application

pytestmark = pytest.mark.chromium

SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
TEXT = "document.getElementById('apps').textContent"


@pytest.fixture
def server() -> Iterator[Server[RuleEngine]]:
    server = Server(
        RuleEngine(),
        lambda backend: OrderedApplications(backend, "las", ApplicationsConfig(), time.monotonic),
    )
    yield server
    server.stop()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_classes_are_drawn_and_instances_listed(
    server: Server[RuleEngine], tmp_path: Path, width: int, height: int
) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    app = Application(server.client(), "review <b>")
    other = Application(server.client(), "review")

    @other.tool
    def run_tests() -> None: ...

    with tab(tmp_path) as page:
        page.open(server.url, width=width, height=height, dark=width < 600)
        page.until("document.getElementById('health').className === 'ok'")
        assert page.run("document.getElementById('apps').hidden")
        for again in (True, False):
            with other.instance() as run:
                run.chat.completions.create(model="toy", messages=messages, unit="write")
                run_tests()
                if again:
                    run.chat.completions.create(model="toy", messages=messages, unit="write")
        with other.instance() as run, run.tool("wait"):
            page.until("!document.getElementById('apps').hidden")
            page.until(f"{TEXT}.includes('review · {run.name[:8]}')")
            assert page.run("document.querySelectorAll('#turns li').length") == 1
        with app.instance() as run:  # a name that the server does not take: untagged
            run.chat.completions.create(model="toy", messages=messages)
        page.until(f"{TEXT}.includes('3 runs')")
        assert page.run("document.querySelectorAll('.app').length") == 1
        assert page.run("document.querySelectorAll('.app circle').length") == 3
        assert page.run("document.querySelectorAll('.app .jump').length") == 2  # there and back
        assert "run_tests" in page.run(TEXT) and "→ run_tests 67 %" in page.run(TEXT)
        assert page.run("document.querySelectorAll('.app .bin').length") == 36
        page.until("document.querySelectorAll('#turns li').length === 0")
        if width < 600:
            page.run("document.getElementById('live').open = true")
        page.screenshot(tmp_path / "apps.png")
        assert page.run(SIDEWAYS) == 0
        assert page.console == []

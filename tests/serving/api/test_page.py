"""The page at ``/`` in a browser: chat, live figures, nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import Server
from devtools import tab
from patience import until
from rule_engine import RuleEngine

pytestmark = pytest.mark.chromium

SAY = """{ const text = document.getElementById("text"); text.value = %r;
document.getElementById("ask").requestSubmit(); }"""
ANSWER = "document.querySelectorAll('.assistant:not(.busy) .said')"
WIDTH = "document.querySelector('%s').getBoundingClientRect().width"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def server() -> Iterator[Server[RuleEngine]]:
    server = Server(RuleEngine(step_s=0.01))
    yield server
    server.stop()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_a_conversation(
    server: Server[RuleEngine], tmp_path: Path, width: int, height: int
) -> None:
    with tab(tmp_path) as page:
        page.open(server.url, width=width, height=height, dark=width < 600)
        page.until("document.getElementById('model').length === 2")
        assert page.run("document.getElementById('model').value") == "toy"
        page.until("document.getElementById('health').className === 'ok'")
        page.run(SAY % "hello <b>there</b> €")
        page.until(f"{ANSWER}.length === 1")
        assert page.run(f"{ANSWER}[0].textContent") == "hello <b>there</b> €"
        assert "tokens" in page.run("document.querySelector('.assistant .note').textContent")
        page.run("document.getElementById('model').value = 'toy:twin'")
        page.run(SAY % "how are you")
        page.until(f"{ANSWER}.length === 2")
        assert server.engine.seen[-1].adapter == "twin"
        prompt = server.engine.seen[-1].prompt
        assert prompt.count(2) == 2 and prompt.count(3) == 2  # both turns are in it
        page.until("Number(document.querySelector('#live dd').textContent) === 0")
        page.until("document.querySelector('#spark .line').getAttribute('d')")
        assert page.run(SIDEWAYS) == 0
        assert page.run(WIDTH % "main") == (width if width < 600 else width - 320)
        assert page.run(WIDTH % "aside") == (width if width < 600 else 320)
        assert all(url.startswith((server.url, "data:")) for url in page.asked)
        assert page.console == []


def test_an_answer_can_be_stopped_and_an_error_is_said(
    server: Server[RuleEngine], tmp_path: Path
) -> None:
    with tab(tmp_path) as page:
        page.open(server.url, width=1280, height=800)
        page.until("document.getElementById('model').length === 2")
        page.run(SAY % ("hello there " * 40))
        page.until("document.querySelector('.busy .said').textContent.length > 20")
        page.run("document.getElementById('send').click()")
        page.until("document.querySelector('.assistant .note').textContent.includes('stopped')")
        page.until(f"{ANSWER}.length === 1")
        until(lambda: server.engine.cancelled, "the cancellation")
        page.run("document.getElementById('tokens').value = 100000")
        page.run(SAY % "hello")
        page.until("document.querySelector('.turn.bad .said').textContent.includes('max_tokens')")

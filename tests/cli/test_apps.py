"""What ``hecate apps`` makes of what a server says, and of one that says nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from hecate.cli.app import main

SPREAD = {"mean": 2.0, "p10": 1, "p50": 2, "p90": 3, "least": 1, "most": 3}
TOLD: dict[str, Any] = {
    "object": "applications",
    "policy": "gittins",
    "waiting": 1,
    "running": 2,
    "under_way": 1,
    "classes": [
        {
            "class": "review",
            "instances": 40,
            "device_s": {**SPREAD, "histogram": [0.1, 0, 0.9]},
            "units": [
                {
                    "unit": "write",
                    "kind": "llm",
                    "runs": 60,
                    "share": 1.0,
                    "failed": 0,
                    "seconds": {**SPREAD, "histogram": [0.1, 0, 0.9]},
                    "calls": {**SPREAD, "histogram": [1]},
                    "prompt_tokens": {**SPREAD, "histogram": [1]},
                    "output_tokens": {**SPREAD, "histogram": [1]},
                },
                {
                    "unit": "test",
                    "kind": "container",
                    "runs": 30,
                    "share": 0.5,
                    "failed": 3,
                    "seconds": {**SPREAD, "p50": 0.25, "histogram": [0.1, 0, 0.9]},
                },
                {
                    "unit": "broken",
                    "kind": "tool",
                    "runs": 2,
                    "share": 0.1,
                    "failed": 2,
                    "seconds": {},
                },
            ],
            "edges": [
                {"from": "", "to": "write", "probability": 1.0},
                {"from": "write", "to": "test", "probability": 0.75},
                {"from": "write", "to": "", "probability": 0.25},
            ],
        }
    ],
    "instances": [
        {
            "class": "review",
            "id": "one",
            "age_s": 3.0,
            "attained_s": 0.5,
            "deadline_in_s": None,
            "units_done": 1,
            "open": ["test"],
            "waiting": 0,
            "running": 0,
            "position": None,
            "rank": None,
            "left_s": 1.25,
        }
    ],
}


@contextmanager
def saying(status: int, answer: object) -> Iterator[tuple[str, list[str]]]:
    """An address that answers so, and the keys that it was asked with."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            keys.append(self.headers.get("authorization", ""))
            data = json.dumps(answer).encode()
            self.send_response(status if self.path == "/v1/applications" else 404)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", keys
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_classes_and_instances_are_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with saying(200, TOLD) as (url, keys):
        assert main(["apps", url, "--key", "k"]) == 0
    assert keys == ["Bearer k"]
    said = capsys.readouterr().out
    for text in ("gittins", "review: 40 instances", "test 75%, end 25%", "test (container)"):
        assert text in said
    for text in ("▁ █", "250 ms, 3 failed", "?, 2 failed", "1.25 s", "500 ms"):
        assert text in said


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with saying(200, TOLD) as (url, _):
        assert main(["apps", f"{url}/v1/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == TOLD


def test_what_cannot_be_shown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with saying(401, {"error": {"message": "no API key"}}) as (url, _):
        assert main(["apps", url]) == 2
    assert "no API key" in (error := capsys.readouterr().err) and "--key" in error
    with saying(200, []) as (url, _):
        assert main(["apps", url]) == 2
    assert "no server of Hecate's" in capsys.readouterr().err
    assert main(["apps", url]) == 2  # nobody listens there any more
    assert "nothing answers" in capsys.readouterr().err
    with saying(200, {**TOLD, "classes": [], "instances": []}) as (url, _):
        assert main(["apps", url]) == 0
    assert "no application has ended yet" in capsys.readouterr().out

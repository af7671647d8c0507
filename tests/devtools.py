"""A served page in headless Chromium, through its DevTools: real time, a real server."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from browser import CHROMIUM
from patience import PATIENCE_S
from websockets.sync.client import ClientConnection, connect


class Tab:
    """One tab. ``console`` and ``asked``: what it complained of, and every address it asked."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.console: list[str] = []
        self.asked: list[str] = []

    def open(self, url: str, *, width: int, height: int, dark: bool = False) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=url)

    def until(self, condition: str, seconds: float = PATIENCE_S / 4) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        script = f"""new Promise((done, late) => {{
            const end = Date.now() + {seconds * 1000};
            const look = () => {{
                let value; try {{ value = {condition}; }} catch {{}}
                if (value) done(value);
                else if (Date.now() > end) late(new Error("not in time"));
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        return self.run(script)

    def run(self, script: str) -> Any:
        found = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            if message.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(message["params"]["exceptionDetails"]))
            if message.get("method") == "Log.entryAdded":
                entry = message["params"]["entry"]
                if entry["level"] in ("warning", "error"):
                    self.console.append(entry["text"])
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A new browser with its profile in ``folder``, gone at the end."""
    process = subprocess.Popen(
        [
            *CHROMIUM,
            "--remote-debugging-port=0",
            f"--user-data-dir={folder / 'browser'}",
            "about:blank",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        found = next(
            match
            for line in process.stderr
            if (match := re.search(r"DevTools listening on ws://(127\.0\.0\.1:\d+)", line))
        )
        pages = httpx.get(f"http://{found[1]}/json").json()
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        with connect(address, max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)

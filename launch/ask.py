"""Serve a model as ``hecate serve`` does, and ask it something through the official client.

    python launch/ask.py HF_FOLDER [PROMPT]

Against a server that runs already, all of it is the ``ask`` function.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from openai import OpenAI

STARTS_S = 300.0


def ask(url: str, prompt: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    began_s = time.perf_counter()
    first_s = 0.0
    print(prompt, end="", flush=True)
    stream = client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=100,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    tokens = 0
    for chunk in stream:
        for choice in chunk.choices:
            first_s = first_s or time.perf_counter() - began_s
            print(choice.text, end="", flush=True)
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    whole_s = time.perf_counter() - began_s
    print(
        f"\n-- {model}: {tokens} tokens in {whole_s:.2f} s, the first after {first_s * 1e3:.0f} ms"
    )


def main(folder: str, prompt: str = "def ") -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "hecate", "serve", folder, "--set", f"http.port={port}"]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        wait_for(url, server)
        ask(url, prompt)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server at ``url`` is healthy; ``SystemExit`` where it ends or never is."""
    give_up_s = time.monotonic() + STARTS_S
    while time.monotonic() < give_up_s:
        if server.poll() is not None:
            raise SystemExit(f"hecate serve ended with {server.returncode}; it said why above")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"nothing answers at {url} after {STARTS_S:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])

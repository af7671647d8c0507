"""A page in headless Chromium: what it became at a given width, without network."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

from patience import PATIENCE_S

CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)

# A window cannot be as narrow as a phone; a frame in it can, and to its page it is the window.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="{page}" style="border:0;width:{width}px;height:3000px"></iframe>
<pre id="found"></pre>
<script>
const look = (document, window) => {{ {look} }};
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => setTimeout(() => {{
  const found = document.getElementById("found");
  try {{
    found.textContent = JSON.stringify(look(frame.contentDocument, frame.contentWindow));
  }} catch (error) {{
    found.textContent = JSON.stringify({{ error: String(error) }});
  }}
}}, 200));
</script>
"""


def seen(page: Path, look: str, *, width: int, dark: bool = False) -> tuple[Any, list[str]]:
    """What ``look``, a function's body over ``document`` and ``window``, returns for ``page``, and
    the lines that the browser's console got."""
    frame = page.with_name(f"{page.stem}-frame.html")
    frame.write_text(FRAME.format(page=page.resolve().as_uri(), width=width, look=look))
    done = subprocess.run(
        [
            *CHROMIUM,
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--allow-file-access-from-files",
            f"--user-data-dir={page.parent / 'browser'}",
            f"--window-size={max(width, 600)},3000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=10000",
            "--enable-logging=stderr",
            "--dump-dom",
            frame.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match and match[1], f"nothing came back: {done.stdout[-500:]}{done.stderr[-2000:]}"
    found = json.loads(unescape(match[1]))
    assert "error" not in found, found["error"]
    return found, console

"""A command on a real terminal, and what a person would see on it in the end."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path


def on_a_terminal(
    command: Sequence[str], *, width: int, cwd: Path | None = None, timeout_s: float = 90.0
) -> tuple[int, str]:
    """The exit code of ``command``, and all that it wrote to a terminal of ``width`` columns."""
    ours, theirs = pty.openpty()
    size = {"COLUMNS": str(width), "LINES": "50"}
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **size}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=cwd
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], timeout_s)[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    return process.wait(timeout=timeout_s), shown.decode()


def screen(text: str) -> list[str]:
    """The lines that are left after every redrawing, without colours and empty ones."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b["):
            if part.endswith("A"):
                row = max(0, row - int(part[2:-1] or 1))
            elif part == "\x1b[2K":
                lines[row] = ""
        else:
            old = lines[row].ljust(column)
            lines[row] = old[:column] + part + old[column + len(part) :]
            column += len(part)
        lines += [""] * (row + 1 - len(lines))
        if part == "\n":
            column = 0
    return [line.rstrip() for line in lines if line.strip()]

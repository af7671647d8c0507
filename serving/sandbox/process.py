"""Interpreters as processes of this machine, each the first of a group of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from serving.sandbox import child
from serving.sandbox.config import SandboxConfig

_LOOK_S = 0.005


class ProcessStarter:
    """With an empty environment, in an empty folder that goes with it."""

    def __init__(self, config: SandboxConfig) -> None:
        self._source = Path(child.__file__).read_text(encoding="utf-8")

    async def start(self, arguments: Sequence[str]) -> StartedProcess:
        folder = tempfile.mkdtemp(prefix="hecate-sandbox-")
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-c", self._source, *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return StartedProcess(process, folder)


class StartedProcess:
    """Killed with all that it started; its folder is removed."""

    def __init__(self, process: asyncio.subprocess.Process, folder: str) -> None:
        self.process = process
        self.folder = folder

    async def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the group outlives its first process
        while self.process.returncode is None:
            await asyncio.sleep(_LOOK_S)
        if self.process.stdin is not None:
            self.process.stdin.close()
        await asyncio.to_thread(_sweep, self.folder)


def _sweep(folder: str) -> None:
    """End what left the group, known by its home, and remove that."""
    mark = f"HOME={folder}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)

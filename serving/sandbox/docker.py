"""Interpreters in containers: what a program sees of the machine is what its image has."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from serving.sandbox import child
from serving.sandbox.config import SandboxConfig

_FOLDER = "/tmp"


async def docker_answers() -> bool:
    """Whether there is a Docker here whose daemon answers."""
    if shutil.which("docker") is None:
        return False
    quiet = asyncio.subprocess.DEVNULL
    asked = await asyncio.create_subprocess_exec("docker", "info", stdout=quiet, stderr=quiet)
    return await asked.wait() == 0


class DockerStarter:
    """A container each: no network, nothing to write to but ``/tmp``, in memory, and no rights."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._source = Path(child.__file__).read_text(encoding="utf-8")

    def command(self, name: str, arguments: Sequence[str]) -> list[str]:
        """What starts one."""
        config = self._config
        return [
            *("docker", "run", "--rm", "--interactive", "--name", name, "--init"),
            *("--network", "none", "--read-only", "--cap-drop", "ALL", "--pids-limit", "64"),
            *("--security-opt", "no-new-privileges", "--user", "65534:65534"),
            *("--memory", f"{config.memory_mib}m", "--memory-swap", f"{config.memory_mib}m"),
            *("--tmpfs", f"{_FOLDER}:size={max(1, config.file_mib)}m,mode=1777"),
            *(config.image, "python", "-I", "-c", self._source, *arguments),
        ]

    async def start(self, arguments: Sequence[str]) -> StartedContainer:
        name = f"hecate-sandbox-{uuid.uuid4().hex[:12]}"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self.command(name, arguments), stdin=pipe, stdout=pipe, stderr=pipe
        )
        return StartedContainer(process, name)


class StartedContainer:
    """``process``: the client, which ends with its container."""

    folder = _FOLDER

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process = process
        self._name = name

    async def kill(self) -> None:
        if self.process.returncode is None:
            quiet = asyncio.subprocess.DEVNULL
            killing = await asyncio.create_subprocess_exec(
                "docker", "kill", self._name, stdout=quiet, stderr=quiet
            )
            if await killing.wait() and self.process.returncode is None:
                self.process.kill()  # its container never came to be
        await self.process.wait()

"""The processes of a stack from outside: what they hold, and who kills one of them."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil

from hecate.bench.soak.accounts import Sample

SERVE = "hecate serve"
ENGINE = "engine replica"
_TITLES = {  # as Ray calls its processes -> what they are there for, and whether in our code
    "ray::ServeReplica:hecate:engine": (ENGINE, True),
    "ray::ServeReplica:hecate:ingress": ("ingress", True),
    "ray::ServeController": ("Ray: Serve's controller", False),
    "ray::IDLE": ("Ray: idle worker", False),
}


class Processes:
    """The process ``hecate serve`` and all below it."""

    def __init__(self, process_id: int) -> None:
        self._root = psutil.Process(process_id)
        self._known: dict[int, psutil.Process] = {}

    def samples(self) -> list[Sample]:
        """One of each process that lives."""
        found = []
        for process in (self._root, *self._family()):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                role, ours = self._role(process)
                found.append(
                    Sample(
                        time.monotonic(),
                        process.pid,
                        role,
                        ours,
                        process.memory_info().rss,
                        process.num_fds(),
                        process.num_threads(),
                    )
                )
        return found

    def engines(self) -> list[int]:
        """Process ids of engine replicas, the oldest first."""
        found = []
        for process in self._family():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if self._role(process)[0] == ENGINE:
                    found.append((process.create_time(), process.pid))
        return [process_id for _, process_id in sorted(found)]

    def kill(self, process_id: int) -> None:
        """As the kernel does when memory runs out."""
        os.kill(process_id, signal.SIGKILL)

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return self._root.children(recursive=True)
        return []

    def _role(self, process: psutil.Process) -> tuple[str, bool]:
        if process.pid == self._root.pid:
            return SERVE, True
        words = process.cmdline()
        title = words[0] if words else ""
        for prefix, role in _TITLES.items():
            if title.startswith(prefix):
                return role
        scripts = [os.path.basename(word) for word in words if word.endswith(".py")]
        return f"Ray: {scripts[0] if scripts else process.name()}", False

"""Programs that models write, run apart: bounded in time, memory and output, started ahead.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | - | bounds, and how many are kept ready |
| protocol.py | - | a program, what came of it, and what can run one |
| child.py | executes | inside: waits for a program, bounds itself, runs it |
| session.py | executes | one interpreter from outside: ready, a program, its end |
| process.py | executes | interpreters as processes of this machine |
| docker.py | executes | interpreters in containers |
| pool.py | executes | some of either, ready before they are needed |
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from serving.sandbox.config import SandboxConfig
from serving.sandbox.docker import DockerStarter
from serving.sandbox.pool import SandboxPool
from serving.sandbox.process import ProcessStarter
from serving.sandbox.protocol import Outcome, Program, Starter

STARTERS: Mapping[str, type[ProcessStarter] | type[DockerStarter]] = MappingProxyType(
    {"process": ProcessStarter, "docker": DockerStarter}
)

__all__ = ["STARTERS", "Outcome", "Program", "SandboxConfig", "SandboxPool", "Starter"]

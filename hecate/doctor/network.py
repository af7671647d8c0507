"""Whether processes can talk to one another here: gloo, NCCL, Ray."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.distributed as dist

from hecate.doctor.report import Row
from hecate.errors import HecateError
from hecate.mesh import MeshConfig, Rendezvous, open_mesh, sum_over


def rows() -> list[Row]:
    """gloo by an all-reduce, NCCL by its version, Ray by an import."""
    return [gloo(), nccl(), ray()]


def gloo() -> Row:
    """One rank forms its groups and sums a tensor with itself, as every CPU job begins."""
    fix = "map the machine's host name to an address in /etc/hosts, or set GLOO_SOCKET_IFNAME=lo"
    try:
        alone = Rendezvous.from_environment({})
        with open_mesh(MeshConfig(device="cpu", timeout_s=30), alone) as ctx:
            total = sum_over(ctx.groups.control, torch.ones(4))
    except (HecateError, RuntimeError) as error:
        return Row("gloo", str(error).splitlines()[0], "missing", fix, required=True)
    assert total.tolist() == [1.0] * 4
    return Row("gloo", "an all-reduce works", required=True)


def nccl() -> Row:
    """NCCL matters only where there are GPUs."""
    if not dist.is_nccl_available():
        if torch.cuda.is_available():
            return Row("NCCL", "not in this torch", "warn", "install torch's own CUDA build")
        return Row("NCCL", "not in this torch; not needed without GPUs")
    library: Any = torch.cuda.nccl
    return Row("NCCL", ".".join(str(part) for part in library.version()))


def ray() -> Row:
    """An installed Ray that does not import is worth a word before a job needs it."""
    if importlib.util.find_spec("ray") is None:
        return Row("Ray", "not installed; torchrun does without", "missing")
    try:
        importlib.import_module("ray.train")
    except Exception as error:  # whatever a foreign package raises on import
        first = (str(error) or type(error).__name__).splitlines()[0]
        return Row("Ray", f"does not import: {first}", "warn", 'pip install -U "ray[train]"')
    return Row("Ray", "imports")

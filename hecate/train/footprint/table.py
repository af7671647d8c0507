"""A footprint for people. Pure."""

from __future__ import annotations

from hecate.train.footprint.parts import Footprint

MEANING = {
    "process": "interpreter, libraries, process groups, data",
    "parameters": "experts of this rank, its shards of the rest",
    "gradients": "of those",
    "optimizer": "both moments of those",
    "copies": "of other ranks' experts, and their gradients",
    "gathered": "whole dense parameters and gradients",
    "activations": "of one micro-batch, where most are alive",
    "checkpoint": "the copy that is written in the background",
    "allocator": "freed memory that nothing fits into",
}


def gib(size_bytes: float) -> str:
    """``"1.24 GiB"``; below a hundredth of one in MiB."""
    if size_bytes < 2**30 / 100:
        return f"{size_bytes / 2**20:.1f} MiB"
    return f"{size_bytes / 2**30:.2f} GiB"


def line(footprint: Footprint) -> str:
    """The total and the parts that are there, in one line."""
    parts = ", ".join(f"{name} {gib(size)}" for name, size in footprint.items() if size)
    return f"{gib(footprint.total)} ({parts})"


def table(footprint: Footprint) -> str:
    """One part a line, and the total."""
    rows = [(name, size, MEANING[name]) for name, size in footprint.items()]
    lines = [f"{name:<12} {gib(size):>11}   {meaning}" for name, size, meaning in rows]
    return "\n".join([*lines, f"{'in all':<12} {gib(footprint.total):>11}"])

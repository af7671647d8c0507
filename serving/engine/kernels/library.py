"""The compiled kernels: built by the machine's own g++ when first used, and kept.

Structs mirror those of forward.cpp and adapters.h, field by field.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import CFUNCTYPE, POINTER, Structure, c_float, c_int32, c_long, c_void_p
from pathlib import Path

from hecate.folders import cache_folder

_FLAGS = ("-std=c++20", "-O3", "-march=native", "-pthread", "-fPIC", "-shared", "-w")
_BUILD_S = 300

CALL = CFUNCTYPE(None, c_int32, c_int32)


class KernelsMissing(Exception):
    """There is no library here; the message says why."""


class Weight(Structure):
    _fields_ = [
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int32),
        ("inputs", c_int32),
    ]


class Heads(Structure):
    _fields_ = [
        ("queries", c_int32),
        ("keys", c_int32),
        ("dim", c_int32),
        ("norm", c_int32),
        ("block_tokens", c_int32),
        ("eps", c_float),
        ("scale", c_float),
    ]


class Layer(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, Weight) for name in ("qkv", "out", "router", "gate_up", "down")),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int32),
    ]


class Model(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("layers", "width", "chosen", "normalise")),
        ("eps", c_float),
        ("heads", Heads),
        ("team", c_void_p),
        ("layer", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("cos_sin", c_void_p),
        ("embedding", c_void_p),
        ("head", Weight),
    ]


class Workspace(Structure):
    _fields_ = [
        (name, c_void_p)
        for name in (
            *("hidden", "qkv", "router", "up", "pairs"),
            *("normed", "queries", "attended", "gathered", "act"),
            *("order", "offsets", "row", "weights"),
        )
    ]


class Part(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("a", "b", "ranks")),
        ("column", c_int32),
        ("outputs", c_int32),
    ]


class Change(Structure):
    _fields_ = [("part", Part * 3), ("parts", c_int32)]


class Adapters(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("change", "slot", "place")),
        *((name, c_int32) for name in ("places", "slot_rows", "tokens")),
    ]


class Step(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("tokens", "sequences", "table_width", "samples")),
        *((name, c_void_p) for name in ("token", "start", "position", "table", "sampled")),
        ("logits", c_void_p),
        ("adapters", POINTER(Adapters)),
        ("late", c_int32),
        ("before", CALL),
        ("after", CALL),
    ]


@functools.cache
def kernels() -> ctypes.CDLL:
    """The library; compiled now if this machine has not yet. Raises ``KernelsMissing``."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise KernelsMissing("there is no g++ here")
    sources = sorted([*Path(__file__).parent.glob("*.h"), *Path(__file__).parent.glob("*.cpp")])
    try:
        library = ctypes.CDLL(str(_built(compiler, sources)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise KernelsMissing(f"g++ could not build them: {said.strip()[:300]}") from error
    library.hecate_forward.argtypes = [POINTER(Model), POINTER(Step), POINTER(Workspace), c_int32]
    library.hecate_forward.restype = None
    library.hecate_packed_bytes.argtypes = [c_int32, c_int32, c_int32]
    library.hecate_packed_bytes.restype = c_long
    library.hecate_pack.argtypes = [c_void_p, c_void_p, c_int32, c_int32, c_int32]
    library.hecate_pack.restype = None
    library.hecate_team.argtypes = [c_int32]
    library.hecate_team.restype = c_void_p
    library.hecate_dismiss.argtypes = [c_void_p]
    library.hecate_dismiss.restype = None
    library.hecate_map.argtypes = [c_int32, c_long, c_int32]
    library.hecate_map.restype = c_void_p
    library.hecate_map_again.argtypes = [c_int32, c_void_p, c_long]
    library.hecate_map_again.restype = c_int32
    library.hecate_unmap.argtypes = [c_void_p, c_long]
    library.hecate_unmap.restype = None
    library.hecate_collapse.argtypes = [c_void_p, c_long]
    library.hecate_collapse.restype = c_long
    return library


def _built(compiler: str, sources: list[Path]) -> Path:
    """The library's file, in the user's cache, by what went into it and for which processor."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode() + _processor().encode())
    for path in sources:
        digest.update(path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest.update(version)
    library = cache_folder() / "kernels" / f"{digest.hexdigest()[:24]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Apart, then moved: another process may load the same file at the same time.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            subprocess.run(
                [
                    compiler,
                    *_FLAGS,
                    "-o",
                    str(made),
                    *(str(s) for s in sources if s.suffix == ".cpp"),
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=_BUILD_S,
            )
            os.replace(made, library)
    return library


def _processor() -> str:
    """What the compiler takes for native: a cache folder may be shared by unlike machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    lines = text.splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")

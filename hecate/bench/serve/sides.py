"""The two that are compared: our engine and vLLM's, with equal settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hecate.bench.crew import usable_cores
from hecate.bench.serve.contender import CHECKOUT, Contender, started
from serving.engine.config import EngineConfig, MemoryConfig
from serving.lora.config import LoraConfig
from serving.scheduling.config import SchedulingConfig

NATIVE = "native"
VLLM = "vllm"
START_S = 300.0
VLLM_OFFLINE = CHECKOUT / "serving" / "bench" / "vllm_offline.py"
MODES: Mapping[str, Mapping[str, Any]] = {
    "compiled": {},
    "eager": {"enforce_eager": True},
}
"""vLLM's ways to run a model, of which the fastest here is taken."""


@dataclass(frozen=True)
class Setting:
    """What both sides are given. ``python``: an interpreter that has vLLM, "" where there is none;
    ``mode``: which of ``MODES``. ``swap_gib``: ours alone has it."""

    folder: Path
    threads: int
    context: int
    sequences: int
    kv_gib: float
    dtype: str
    python: str
    mode: str = "compiled"
    swap_gib: float = 0.0

    @property
    def engine(self) -> EngineConfig:
        """Ours, of either kind."""
        return EngineConfig(
            model=str(self.folder),
            name="bench",
            device="cpu",
            dtype=self.dtype,
            threads=self.threads,
            max_tokens=self.context,
            max_waiting=100_000,
            memory=MemoryConfig(kv_gib=self.kv_gib, swap_gib=self.swap_gib),
            scheduling=SchedulingConfig(max_sequences=self.sequences),
            lora=LoraConfig(slots=0),
        )

    @property
    def llm(self) -> dict[str, Any]:
        """Arguments of vLLM's ``LLM``; what is not named stays as vLLM has it."""
        return {
            "model": str(self.folder),
            "dtype": self.dtype,
            "max_model_len": self.context,
            "max_num_seqs": self.sequences,
            "kv_cache_memory_bytes": int(self.kv_gib * 2**30),
            "enable_prefix_caching": True,
            **MODES[self.mode],
        }

    @property
    def vllm_environment(self) -> dict[str, str]:
        """Of vLLM's process: threads bound to cores, all in one process, Intel's OpenMP and
        tcmalloc where they are, as its documentation advises for CPUs."""
        cores = sorted(usable_cores())[: self.threads]
        preload = [str(path) for path in _preloads(Path(self.python))]
        return {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": "",
            **({"LD_PRELOAD": ":".join(preload)} if preload else {}),
        }


def offline(
    side: str, setting: Setting, folder: Path
) -> AbstractContextManager[tuple[Contender, Any]]:
    """``side`` as it is fastest at many requests at once."""
    if side == NATIVE:
        return online(side, setting, folder)
    command = [setting.python, str(VLLM_OFFLINE), json.dumps(setting.llm)]
    return started(
        side,
        command,
        environment=setting.vllm_environment,
        folder=folder,
        timeout_s=START_S,
    )


def online(
    side: str, setting: Setting, folder: Path
) -> AbstractContextManager[tuple[Contender, Any]]:
    """``side`` behind our ``Engine`` protocol, answering as requests come."""
    python, config, environment = sys.executable, setting.engine, {"PYTHONPATH": str(CHECKOUT)}
    if side == VLLM:
        python = setting.python
        kernels = "off" if setting.mode == "eager" else "auto"
        config = config.model_copy(update={"kind": "vllm", "kernels": kernels})
        environment = setting.vllm_environment | environment
        del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return started(
        side,
        [python, "-m", "serving.bench.worker", config.model_dump_json()],
        environment=environment,
        folder=folder,
        timeout_s=START_S,
    )


def _preloads(python: Path) -> list[Path]:
    beside = python.parent.parent / "lib" / "libiomp5.so"
    places = [*Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"), beside]
    return [path for path in places if path.exists()]

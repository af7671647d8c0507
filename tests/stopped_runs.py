"""Runs that go through, and as they lie when they were killed: what resuming starts from."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jobs import metrics, write_corpus
from ranks import run_ranks
from reference import WideFloats
from toy_models import toy_config

from hecate.checkpoint.reader import CheckpointReader
from hecate.mesh import ParallelContext
from hecate.train.config import RunConfig
from hecate.train.run import train

STOP, STEPS = 3, 9
LAST = f"step-{STEPS:08d}"


# Copies cost next to nothing and owners are looked at every other step, so that experts move.
RESTLESS = {
    "fssdp": {"reshard_every": 2, "reshard_at": 1.0},
    "swapping": {"every": 2},
    # replicas come one by one: what is held depends on every step before
    "replication": {"slack": 1.0, "changes_per_step": 1},
    "costs": {"slot_s": 1.0, "copy_s": 1e-9},
}

# Half of all steps are above the median.
GUARDS = {
    "stop": {},
    "skip": {"action": "skip", "warmup": 2, "deviations": 1e-9},
    "rewind": {
        "action": "skip",
        "warmup": 2,
        "deviations": 1e-9,
        "rewind_after": 2,
        "rewinds": 9,
    },
}


@dataclass(frozen=True)
class Case:
    family: str = "qwen3_moe"
    dtype: str = "float32"
    bias_update_rate: float = 0.0
    accumulation: int = 1
    dropout: float = 0.0
    restless: bool = False
    policy: str = "fssdp"
    backend: str = "fsdp2"
    stage: int = 0
    guard: str = "stop"
    optimizer: str = "adamw"
    ema: float = 0.0

    @property
    def name(self) -> str:
        moves = "restless" if self.restless else "calm"
        what = f"{self.family}-{self.dtype}-{self.dropout}-{self.policy}-{moves}"
        return f"{what}-{self.dense_name}-{self.optimizer}"

    @property
    def dense_name(self) -> str:
        return f"{self.backend}{self.stage or ''}"

    def config(self, folder: Path, name: str) -> RunConfig:
        sizes = toy_config(self.family).to_diff_dict()
        for key in ("model_type", "transformers_version", "architectures", "dtype", "vocab_size"):
            sizes.pop(key, None)
        if self.dropout:
            sizes["attention_dropout"] = self.dropout
        return RunConfig(
            name=name,
            folder=str(folder / "runs"),
            seed=5,
            model={
                "family": self.family,
                "sizes": sizes,
                "attention": "sdpa" if self.dropout else "auto",
            },
            data={
                "path": str(folder / "corpus"),
                "cache": str(folder / "cache"),
                "sequence_tokens": 24,
                "tokenizer": {"vocab_size": 280},
            },
            experts={"policy": self.policy, **(RESTLESS if self.restless else {})},
            router={"balance_loss": 0.01, "bias_update_rate": self.bias_update_rate},
            train={
                "steps": STEPS,
                "batch_sequences": 5 * self.accumulation,
                "accumulation": self.accumulation,
                "dtype": self.dtype,
            },
            dense={
                "backend": self.backend,
                **({"deepspeed": {"stage": self.stage}} if self.stage else {}),
            },
            guard=GUARDS[self.guard],
            optimizer={"kind": self.optimizer},
            ema={"decay": self.ema},
            schedule={"kind": "cosine", "warmup_steps": 4},
            checkpoint={"every": STOP, "keep": 0},
            logging={"every": 1, "sinks": ["jsonl"]},
        )


def train_on_rank(ctx: ParallelContext, config: RunConfig, resume: str) -> None:
    with WideFloats() if config.train.dtype == "float64" else contextlib.nullcontext():
        train(config, origins={}, resume=resume)


class Runs:
    """Runs over one corpus; each uninterrupted one is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._straight: dict[tuple[Case, int], Path] = {}
        write_corpus(folder / "corpus", files=4)

    def straight(self, case: Case, world_size: int) -> Path:
        """The folder of a run from the first step to the last."""
        key = (case, world_size)
        if key not in self._straight:
            name = f"straight-{len(self._straight)}"
            run_ranks(train_on_rank, world_size, case.config(self.folder, name), "none")
            self._straight[key] = self.folder / "runs" / name
        return self._straight[key]

    def stopped(self, case: Case, world_size: int, name: str) -> Path:
        """That run as it would lie if it had been killed some steps after its checkpoint."""
        run = self.folder / "runs" / name
        shutil.copytree(self.straight(case, world_size), run)
        for path in (run / "checkpoints").iterdir():
            if path.name != f"step-{STOP:08d}":
                shutil.rmtree(path)
        return run


def numbers(run: Path) -> list[dict[str, Any]]:
    """What each step did, as far as it does not depend on the clock."""
    names = ("step", "loss", "auxiliary_loss", "grad_norm", "learning_rate")
    loads = ("load/tokens_per_expert", "load/computed_max_over_mean", "load/copies")
    return [{name: line[name] for name in (*names, *loads)} for line in metrics(run)]


def final_state(run: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(run / "checkpoints" / LAST)
    return {key: reader.tensor(key) for key in reader.keys()}

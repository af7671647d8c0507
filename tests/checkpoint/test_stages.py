"""A rank killed at any stage of a save loses nothing: the newest whole checkpoint is taken."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_states import assert_equal, blanked, state_after
from jobs import metrics
from ranks import RankError, run_ranks
from stopped_runs import Case, Runs, numbers

from hecate.checkpoint.export import export_run
from hecate.checkpoint.folder import saved_steps
from hecate.checkpoint.names import expert_key
from hecate.checkpoint.reader import CheckpointReader
from hecate.checkpoint.stages import Stage, unnoticed
from hecate.checkpoint.store import CheckpointStore
from hecate.errors import CheckpointError
from hecate.mesh import ParallelContext
from hecate.train.config import RunConfig
from hecate.train.evaluate import evaluate_run
from hecate.train.run import train

STEPS, EVERY = 6, 2
OLD, NEW = EVERY, 2 * EVERY
DOOMED = 2
"""The save, from 1, in which a rank dies: there is one before it, and one after."""


@dataclass
class Death:
    """Kills its process when the stage is reached for the ``number``-th time in that save."""

    stage: Stage
    number: int
    saves: int = 0
    times: int = 0
    threads: set[str] = field(default_factory=set)

    def __call__(self, stage: Stage) -> None:
        self.threads.add(threading.current_thread().name)
        self.saves += stage is Stage.STAGED
        if self.saves == DOOMED and stage is self.stage:
            self.times += 1
            if self.times == self.number:
                os.kill(os.getpid(), signal.SIGKILL)


def train_to_death(ctx: ParallelContext, config: RunConfig, victim: int, death: Death) -> None:
    if ctx.rank == victim:
        train(config, origins={}, saving=death)
        raise AssertionError(f"{death.stage} came {death.times} times, on {death.threads}")
    train(config, origins={})


def train_on(ctx: ParallelContext, config: RunConfig, resume: str) -> None:
    train(config, origins={}, resume=resume)


def save_to_death(ctx: ParallelContext, folder: Path, victim: int, death: Death) -> None:
    reached = death if ctx.rank == victim else unnoticed
    group = ctx.groups.checkpoint
    store = CheckpointStore(folder, group=group, rank=ctx.rank, keep=1, reached=reached)
    for step in (OLD, NEW):
        store.save(step, state_after(ctx, step), {}, asynchronous=True)
    store.wait()
    if ctx.rank == victim:
        raise AssertionError(f"{death.stage} came {death.times} times, on {death.threads}")


def load_newest(ctx: ParallelContext, folder: Path) -> str:
    store = CheckpointStore(folder, group=ctx.groups.checkpoint, rank=ctx.rank, keep=1)
    path = store.newest()
    assert path is not None
    wanted = state_after(ctx, int(path.name.removeprefix("step-")))
    state = blanked(wanted)
    store.load(path, state)
    assert_equal(state, wanted)
    return path.name


def named(*steps: int) -> list[str]:
    return [f"step-{step:08d}" for step in steps]


def cases() -> Iterator[Any]:
    """Each stage on each rank that reaches it, and the checkpoints that are whole then."""
    for victim in (0, 1):
        for stage, number in (
            (Stage.STAGED, 1),
            (Stage.FOLDER, 1),
            (Stage.TENSOR, 1),
            (Stage.TENSOR, 6),
            (Stage.FILES, 1),
        ):
            yield pytest.param(stage, number, victim, [OLD], id=f"{stage.name}-{number}-{victim}")
    yield pytest.param(Stage.RECORD, 1, 0, [OLD], id="RECORD")
    yield pytest.param(Stage.PUBLISHED, 1, 0, [OLD, NEW], id="PUBLISHED")
    yield pytest.param(Stage.OUTDATED, 1, 0, [NEW], id="OUTDATED")
    yield pytest.param(Stage.DONE, 1, 0, [NEW], id="DONE")


@pytest.mark.parametrize(("stage", "number", "victim", "left"), list(cases()))
def test_a_rank_killed_at_any_stage_of_a_save_loses_no_whole_checkpoint(
    tmp_path: Path, stage: Stage, number: int, victim: int, left: list[int]
) -> None:
    with pytest.raises(RankError, match=r"died|CollectiveFailure"):
        run_ranks(save_to_death, 2, tmp_path, victim, Death(stage, number))
    assert [path.name for path in saved_steps(tmp_path).values()] == named(*left)
    assert run_ranks(load_newest, 2, tmp_path) == named(left[-1]) * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == named(*left), "leftovers are gone"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("stages"))


def config(runs: Runs, name: str) -> RunConfig:
    whole = Case(restless=True).config(runs.folder, name)
    return whole.model_copy(
        update={
            "train": whole.train.model_copy(update={"steps": STEPS}),
            "checkpoint": whole.checkpoint.model_copy(update={"every": EVERY, "keep": 1}),
        }
    )


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Path:
    """A run that nothing happened to."""
    run_ranks(train_on, 2, config(runs, "straight"), "none")
    return runs.folder / "runs" / "straight"


@pytest.mark.parametrize(
    ("stage", "number", "victim"),
    [
        pytest.param(Stage.TENSOR, 20, 1, id="half-the-tensors"),
        pytest.param(Stage.RECORD, 1, 0, id="marker-no-name"),
        pytest.param(Stage.OUTDATED, 1, 0, id="half-pruned"),
    ],
)
def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(
    runs: Runs, straight: Path, stage: Stage, number: int, victim: int
) -> None:
    doomed = config(runs, f"{stage.name}-{number}")
    run = runs.folder / "runs" / doomed.name
    with pytest.raises(RankError, match=r"died|CollectiveFailure"):
        run_ranks(train_to_death, 2, doomed, victim, Death(stage, number))
    assert len(saved_steps(run / "checkpoints")) == 1
    run_ranks(train_on, 2, doomed, "auto")
    assert metrics(run)[-1]["step"] == STEPS and numbers(run) == numbers(straight)
    ours, theirs = last_state(run), last_state(straight)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def evaluate(ctx: ParallelContext, run: Path) -> None:
    evaluate_run(run)


def test_eval_and_export_refuse_a_damaged_expert_by_its_name(straight: Path) -> None:
    checkpoint = straight / "checkpoints" / f"step-{STEPS:08d}"
    storage = pickle.loads((checkpoint / ".metadata").read_bytes()).storage_data
    key = expert_key("model.layers.1.mlp.experts", 3)
    (at,) = [at for index, at in storage.items() if index.fqn == key]
    file = checkpoint / at.relative_path
    sound = file.read_bytes()
    damaged = bytearray(sound)
    damaged[at.offset + at.length // 2] ^= 1
    file.write_bytes(damaged)
    said = r"is damaged: expert 3 of model\.layers\.1\.mlp\.experts in "
    with pytest.raises(CheckpointError, match=said):
        export_run(straight, straight / "exported")
    with pytest.raises(RankError, match=said):
        run_ranks(evaluate, 2, straight)
    assert not (straight / "exported").exists()
    file.write_bytes(sound)


def last_state(run: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(run / "checkpoints" / f"step-{STEPS:08d}")
    return {key: reader.tensor(key) for key in reader.keys()}

"""The running average of weights: by hand, across a resume, a re-sharding and an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from ranks import RankError, run_ranks
from stopped_runs import STEPS, Case, Runs, final_state, numbers, train_on_rank

from hecate.checkpoint.export import CheckpointWeights, export_run
from hecate.checkpoint.names import dense_key, expert_key
from hecate.checkpoint.reader import CheckpointReader
from hecate.errors import CheckpointError
from hecate.mesh import ParallelContext
from hecate.models.hub import dense_names
from hecate.train.evaluate import evaluate_run

DECAY = 0.7
CASE = Case(restless=True, optimizer="muon", ema=DECAY)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ema"))


@pytest.fixture(scope="module")
def every_step(runs: Runs) -> Path:
    """A run that saves at each step, over which experts move."""
    config = CASE.config(runs.folder, "every-step")
    checkpoint = config.checkpoint.model_copy(update={"every": 1})
    run_ranks(train_on_rank, 2, config.model_copy(update={"checkpoint": checkpoint}), "none")
    return runs.folder / "runs" / "every-step"


def by_hand(run: Path, key: str) -> torch.Tensor:
    steps = range(1, STEPS + 1)
    total = sum(DECAY ** (STEPS - step) for step in steps)
    folders = {step: run / "checkpoints" / f"step-{step:08d}" for step in steps}
    weights = {step: CheckpointReader(path).tensor(key) for step, path in folders.items()}
    return sum(DECAY ** (STEPS - step) / total * weights[step].double() for step in steps)


def test_the_average_is_that_of_all_steps_and_is_what_is_exported(every_step: Path) -> None:
    weights = CheckpointWeights.of_run(every_step, averaged=True)
    layer = weights.layers[1]
    chunk = torch.cat([part.flatten() for part in weights.expert(layer, 2).values()])
    wanted = by_hand(every_step, expert_key(layer.name, 2))
    torch.testing.assert_close(chunk.double(), wanted, rtol=1e-5, atol=1e-6)
    for name in list(dense_names(weights.model, weights.layers))[:3]:
        wanted = by_hand(every_step, dense_key(name))
        torch.testing.assert_close(weights.dense(name).double(), wanted, rtol=1e-5, atol=1e-6)
    report = export_run(every_step, every_step / "averaged", averaged=True)
    assert report.step == STEPS


def evaluate(ctx: ParallelContext, run: Path, averaged: bool) -> float:
    return evaluate_run(run, averaged=averaged)["loss"]


def test_it_is_evaluated_at_any_world(every_step: Path) -> None:
    plain = run_ranks(evaluate, 2, every_step, False)[0]
    averaged = run_ranks(evaluate, 2, every_step, True)[0]
    assert averaged != plain and averaged == pytest.approx(plain, rel=0.2)
    assert run_ranks(evaluate, 3, every_step, True)[0] == pytest.approx(averaged, rel=1e-5)


def test_it_goes_on_bit_for_bit_behind_a_resume(runs: Runs) -> None:
    case = replace(CASE, optimizer="adamw")
    straight = runs.straight(case, 2)
    resumed = runs.stopped(case, 2, "resumed")
    run_ranks(train_on_rank, 2, case.config(runs.folder, resumed.name), "auto")
    assert numbers(resumed) == numbers(straight)
    ours, theirs = final_state(resumed), final_state(straight)
    assert ours.keys() == theirs.keys() and any(key.endswith("/ema") for key in ours)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_a_run_without_one_says_so(runs: Runs) -> None:
    config = Case().config(runs.folder, "without")
    train = config.train.model_copy(update={"steps": 1})
    run_ranks(train_on_rank, 1, config.model_copy(update={"train": train}), "none")
    run = runs.folder / "runs" / "without"
    with pytest.raises(CheckpointError, match="holds no average of weights"):
        export_run(run, run / "out", averaged=True)
    with pytest.raises(RankError, match="holds no average of weights"):
        run_ranks(evaluate, 1, run, True)


@pytest.mark.parametrize("changes", [{"dense": {"backend": "deepspeed"}}, {"lora": {"rank": 2}}])
def test_what_it_does_not_go_with_is_refused(runs: Runs, changes: dict[str, Any]) -> None:
    config = Case(ema=0.9).config(runs.folder, "refused").model_dump()
    if "lora" in changes:
        changes = {**changes, "model": {"path": "somewhere"}}
    with pytest.raises(ValidationError, match=r"ema\.decay averages"):
        type(Case().config(runs.folder, "any")).model_validate(config | changes)

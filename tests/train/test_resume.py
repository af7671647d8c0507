"""A run that stopped and was resumed is the run that never stopped, at its world or another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import RankError, run_ranks
from stopped_runs import LAST, STEPS, STOP, Case, Runs, final_state, numbers, train_on_rank

from hecate.checkpoint.integrity import encode_meta, read_record, write_record
from hecate.checkpoint.reader import CheckpointReader
from hecate.train.config import TrainConfig


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    yield Runs(tmp_path_factory.mktemp("resume"))


BIASED = Case(family="deepseek_v3", bias_update_rate=0.01, accumulation=2)
REPLICATED = Case(dtype="float64", restless=True, policy="replication")


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(Case(), 1, id="qwen3_moe-1"),
        pytest.param(Case(), 2, id="qwen3_moe-2"),
        pytest.param(BIASED, 1, id="deepseek_v3-bias-1"),
        pytest.param(BIASED, 2, id="deepseek_v3-bias-2"),
        pytest.param(Case(dtype="bfloat16"), 2, id="bfloat16-2"),
        pytest.param(Case(dropout=0.2), 2, id="dropout-2"),
        pytest.param(Case(backend="ddp"), 2, id="ddp-2"),
        pytest.param(Case(backend="ddp", dtype="bfloat16", restless=True), 2, id="ddp-bfloat16-2"),
        pytest.param(Case(guard="skip"), 2, id="guard-2"),
        pytest.param(Case(restless=True), 2, id="restless-2"),
        pytest.param(Case(restless=True), 3, id="restless-3"),
        *(
            pytest.param(Case(restless=True, policy=policy), 2, id=f"{policy}-2")
            for policy in ("expert_parallel", "shadowing", "swapping", "replication", "fsdp")
        ),
        pytest.param(Case(restless=True, policy="replication"), 3, id="replication-3"),
    ],
)
def test_an_equal_world_goes_on_bit_for_bit(runs: Runs, case: Case, world_size: int) -> None:
    straight = runs.straight(case, world_size)
    resumed = runs.stopped(case, world_size, f"{case.name}-equal")
    run_ranks(train_on_rank, world_size, case.config(runs.folder, resumed.name), "auto")
    assert numbers(resumed) == numbers(straight)
    assert [line["step"] for line in numbers(resumed)] == list(range(1, STEPS + 1))
    assert len({line["loss"] for line in numbers(resumed)}) == STEPS
    ours, theirs = final_state(resumed), final_state(straight)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    meta = CheckpointReader(resumed / "checkpoints" / LAST).meta
    assert meta["data"]["sequence"] == STEPS * 5 * case.accumulation
    if case.bias_update_rate:
        biases = [ours[key] for key in ours if key.endswith("e_score_correction_bias")]
        assert biases and all(bias.abs().max() >= case.bias_update_rate for bias in biases)
    shutil.rmtree(resumed)


@pytest.mark.parametrize(
    ("case", "before", "world_size", "tolerance"),
    [
        pytest.param(Case(dtype="float64"), 2, 1, 1e-9, id="fp64-1"),
        pytest.param(Case(dtype="float64"), 2, 3, 1e-9, id="fp64-3"),
        pytest.param(Case(dtype="float64"), 2, 4, 1e-9, id="fp64-4"),
        pytest.param(Case(dtype="float64", restless=True), 2, 3, 1e-9, id="fp64-restless-3"),
        pytest.param(REPLICATED, 3, 2, 1e-9, id="fp64-replication-3-2"),
        pytest.param(BIASED, 2, 3, 1e-4, id="fp32-bias-3"),
    ],
)
def test_another_world_goes_on_within_rounding(
    runs: Runs, case: Case, before: int, world_size: int, tolerance: float
) -> None:
    straight = runs.straight(case, before)
    name = f"{case.name}-to-{world_size}"
    source = straight / "checkpoints" / f"step-{STOP:08d}"
    run_ranks(train_on_rank, world_size, case.config(runs.folder, name), str(source))
    resumed = straight.parent / name
    went_on, after = numbers(straight)[STOP:], numbers(resumed)
    assert [line["step"] for line in after] == list(range(STOP + 1, STEPS + 1))
    for old, new in zip(went_on, after, strict=True):
        assert new["learning_rate"] == old["learning_rate"]
        for value in ("loss", "auxiliary_loss", "grad_norm"):
            assert new[value] == pytest.approx(old[value], rel=tolerance, abs=tolerance), value
    ours, theirs = final_state(resumed), final_state(straight)
    for key, tensor in theirs.items():
        if not key.startswith("rng/"):
            torch.testing.assert_close(ours[key], tensor, rtol=tolerance, atol=tolerance)


def test_a_checkpoint_without_the_placements_still_loads(runs: Runs) -> None:
    """Checkpoints of earlier versions know neither owners and loads nor what a policy keeps."""
    case = Case(restless=True, policy="replication")
    resumed = runs.stopped(case, 2, "earlier-version")
    path = resumed / "checkpoints" / f"step-{STOP:08d}"
    record = read_record(path)
    meta = {name: value for name, value in record.meta.items() if name != "experts"}
    write_record(path, record.step, encode_meta(meta), record.files)
    run_ranks(train_on_rank, 2, case.config(runs.folder, resumed.name), "auto")
    for old, new in zip(numbers(runs.straight(case, 2)), numbers(resumed), strict=True):
        assert new["loss"] == pytest.approx(old["loss"], rel=1e-4)


def test_every_rank_and_seed_draws_numbers_of_its_own(runs: Runs) -> None:
    """Without dropout nothing is drawn: the states are those that the run began with."""
    states = final_state(runs.straight(Case(), 2))
    assert not torch.equal(states["rng/0"], states["rng/1"])
    config = Case().config(runs.folder, "another-seed").model_copy(update={"seed": 6})
    run_ranks(train_on_rank, 1, config, "none")
    other = final_state(runs.folder / "runs" / "another-seed")
    assert not torch.equal(states["rng/0"], other["rng/0"])


def test_a_finished_run_is_only_evaluated_again(runs: Runs) -> None:
    straight = runs.straight(Case(), 1)
    before = numbers(straight)
    run_ranks(train_on_rank, 1, Case().config(runs.folder, straight.name), "auto")
    assert numbers(straight) == before


def test_auto_starts_a_run_that_has_no_checkpoint_yet(runs: Runs) -> None:
    config = Case().config(runs.folder, "from-nothing")
    run_ranks(train_on_rank, 1, config, "auto")
    assert numbers(runs.folder / "runs" / "from-nothing") == numbers(runs.straight(Case(), 1))


@pytest.mark.parametrize(
    ("case", "changed", "said"),
    [
        pytest.param(Case(), {"seed": 6}, "place in the data", id="seed"),
        pytest.param(Case("mixtral"), {}, "does not fit this model", id="model"),
        pytest.param(
            Case(), {"train": TrainConfig(steps=2, batch_sequences=5)}, "past the end", id="steps"
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    runs: Runs, case: Case, changed: dict[str, Any], said: str
) -> None:
    straight = runs.straight(Case(), 1)
    config = case.config(runs.folder, f"refused-{len(said)}").model_copy(update=changed)
    with pytest.raises(RankError, match=said):
        run_ranks(train_on_rank, 1, config, str(straight / "checkpoints" / LAST))

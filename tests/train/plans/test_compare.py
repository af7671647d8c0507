"""A replay does what the runtime did, and says plainly what does not fit."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import TOY, metrics, set_, succeed, write_config, write_corpus
from ranks import run_ranks

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.data import MicroBatch
from hecate.errors import ConfigError, StorageError
from hecate.fssdp.choice import POLICY_NAMES, policy_of
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.measure import Costs
from hecate.mesh import ParallelContext
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.policies import Policy
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig
from hecate.train.loads import LoadsHeader, LoadsRecorder, read_loads
from hecate.train.plans.compare import FIGURES, compare, document

STEPS = 6
EXPERT_BYTES = (3 * 32 * 16 * 4,) * 2  # gate, up and down of width 16 on 32, in fp32
# a copy takes 100 bytes there and 200 back at 50 bytes a second: 6 s, which nothing hides
COSTS = StepCosts(slot_s=1.0, gather_bytes=100, reduce_bytes=200, slots_per_rank=3)
TOPOLOGY = Topology.single_node(2, Link(50.0, 0.0))


class Watched(Policy):
    """A policy, and what it decided in each step."""

    def __init__(self, policy: Policy) -> None:
        self.name, self._policy = policy.name, policy
        self.owners: list[Any] = []
        self.planned: list[Any] = []
        self.held: list[dict[int, Placement]] = []

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        planned = self._policy.plan(step, loads, owners)
        self.owners.append([own.holders for own in owners])
        self.planned.append([each.holders for each in planned])
        self.held.append({})
        return planned

    def after_gate(self, layer: int, counts_WE: Counts, placement: Placement) -> Placement:
        held = self._policy.after_gate(layer, counts_WE, placement)
        self.held[-1][layer] = held.holders
        return held

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return self._policy.new_owners(step, loads, owners)

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return self._policy.route(counts_WE, placement)


def experts_config(policy: str) -> ExpertsConfig:
    return ExpertsConfig(
        policy=policy,
        fssdp={"reshard_every": 2, "reshard_at": 1.0, "calibrate": True},
        swapping={"every": 2, "copies_per_move": 0.0},
        shadowing={"dispatch": "even"},
    )


def train_watched(
    ctx: ParallelContext, folder: str, policy: str, accumulation: int
) -> tuple[Watched, list[dict[str, Any]]]:
    """Some steps of the toy model on rows that favour few tokens; rank 0 records the loads.

    What the policy decided, and what each step's metrics say.
    """
    import torch

    rows = 2 * accumulation
    config = RunConfig(
        name="watched",
        model={"family": "qwen3_moe", "sizes": TOY["model"]["sizes"]},
        train={"steps": STEPS, "batch_sequences": 2 * rows, "accumulation": accumulation},
        experts=experts_config(policy),
        data={"sequence_tokens": 16},
    )
    watched = Watched(policy_of(policy, config.experts, Costs(COSTS, TOPOLOGY)))
    trainer = build_trainer(
        config,
        ctx,
        vocab_size=64,
        phase=lambda name: contextlib.nullcontext(),
        policy=watched,
    )
    recorders = []
    if ctx.rank == 0:
        header = LoadsHeader(
            step=0,
            owners=tuple(own.owners for own in trainer.experts.owners),
            window=trainer.experts.loads.state(),
            gather_bytes=EXPERT_BYTES,
            reduce_bytes=EXPERT_BYTES,
            costs=COSTS,
            topology=TOPOLOGY,
            experts=config.experts,
        )
        recorders.append(LoadsRecorder(Path(folder, "loads.jsonl"), header))
    generator = torch.Generator().manual_seed(ctx.rank)
    ran = []
    for step in range(STEPS):
        batches = []
        for _ in range(accumulation):
            # a few tokens come again and again, others from step to step
            ids = torch.randint(2, 6 + 3 * (step // 2), (2, 16), generator=generator)
            positions = torch.arange(16).expand(2, 16)
            batches.append(MicroBatch(ids, ids.roll(-1, 1), positions, (16, 16)))
        result = trainer.step.run(step, batches)
        done = result.experts
        ran.append(
            {
                "owned": done.owned_slots.tolist(),
                "computed": done.computed_slots.tolist(),
                "copies": done.copies,
                "gathered_bytes": done.gathered_bytes,
                "reduced_bytes": done.reduced_bytes,
                "missed": list(done.mispredictions),
                "moves": done.moved,
            }
        )
        for recorder in recorders:
            recorder.record(step, result.routed)
    for recorder in recorders:
        recorder.close()
    return watched, ran


@pytest.mark.parametrize(
    ("policy", "accumulation"),
    [("fssdp", 1), ("fssdp", 2), ("shadowing", 2), ("swapping", 1), ("replication", 1)],
)
def test_a_replay_decides_what_the_runtime_decided(
    policy: str, accumulation: int, tmp_path: Path
) -> None:
    """Owners, copies, slots, bytes, mispredictions and moves of every step, to the number."""
    (watched, ran), (other, same) = run_ranks(train_watched, 2, str(tmp_path), policy, accumulation)
    assert same == ran and other.planned == watched.planned
    comparison = compare(tmp_path, [policy])
    (replayed,) = comparison.replays
    steps = replayed.steps
    assert [[own.holders for own in step.owners] for step in steps] == watched.owners
    assert [[each.holders for each in step.planned] for step in steps] == watched.planned
    assert [dict(enumerate(h.holders for h in step.held)) for step in steps] == watched.held
    found = [
        {
            "owned": step.owned_YW.tolist(),
            "computed": step.computed_YW.tolist(),
            "copies": (step.planned_copies + step.late_copies).sum(),
            "gathered_bytes": gathered_bytes,
            "reduced_bytes": reduced_bytes,
            "missed": list(step.missed),
            "moves": step.moves,
        }
        for step, gathered_bytes, reduced_bytes in zip(
            steps, replayed.gathered_bytes, replayed.reduced_bytes, strict=True
        )
    ]
    assert found == ran
    moves = [step["moves"] for step in ran]
    assert sum(moves) > 0 if policy in ("fssdp", "swapping") else not any(moves)
    assert sum(step["copies"] for step in ran) > 0 or policy == "swapping"
    assert any(layer.missed_experts for step in ran for layer in step["missed"])


def recorded(path: Path, steps: Sequence[Any], **changes: Any) -> Path:
    """A file of one layer of four experts on two ranks, owners 0 0 1 1."""
    header = LoadsHeader(
        step=0,
        owners=((0, 0, 1, 1),),
        window=np.zeros((0, 1, 4), dtype=np.int64),
        gather_bytes=(100,),
        reduce_bytes=(200,),
        costs=COSTS,
        topology=TOPOLOGY,
        experts=ExpertsConfig.model_validate({"fssdp": {"calibrate": False}}),
    )
    recorder = LoadsRecorder(path, replace(header, **changes))
    for step, counts in enumerate(steps):
        recorder.record(step, ((np.array(counts, dtype=np.int64),),))
    recorder.close()
    return path


HOT = [[10, 0, 1, 1], [10, 0, 1, 1]]


def test_figures_by_hand(tmp_path: Path) -> None:
    comparison = compare(recorded(tmp_path / "trace.jsonl", [HOT, HOT]))
    assert [each.policy for each in comparison.replays] == list(POLICY_NAMES)
    figures = {each.policy: each.figures() for each in comparison.replays}
    assert all(each.keys() == FIGURES.keys() for each in figures.values())
    plain = figures["expert_parallel"]
    assert plain["imbalance_before_mean"] == plain["imbalance_after_max"] == 20 / 12
    assert plain["balanced_share"] == pytest.approx(12 / 20)
    assert plain["gathered_bytes_per_step"] == plain["experts_moved"] == 0
    assert (plain["idle_copies_per_step"], plain["missed_experts_per_step"]) == (0, 1)
    assert plain["wait_s_per_step"] == 8  # rank 1 waits 16 s, rank 0 not at all
    # the first step has nothing to plan from, the second copies expert 0 for 6 s of 8 saved
    ours = figures["fssdp"]
    assert ours["imbalance_after_mean"] == pytest.approx((20 / 12 + 1) / 2)
    assert ours["mispredicted_imbalance"] == pytest.approx((20 / 12 - 1) / 2)
    assert (ours["idle_copies_per_step"], ours["missed_experts_per_step"]) == (0, 0.5)
    assert (ours["gathered_bytes_per_step"], ours["wait_s_per_step"]) == (50, 4)
    assert ours["balanced_share"] == pytest.approx(24 / (20 + 12 + 6))
    # all four experts everywhere: two copies into each rank; that of expert 1 computes nothing
    assert figures["fsdp"]["gathered_bytes_per_step"] == 400
    assert figures["fsdp"]["idle_copies_per_step"] == 1
    assert figures["fsdp"]["balanced_share"] == pytest.approx(12 / (12 + 2 * 6))
    # the first error is against an even spread, then none
    assert comparison.prediction_errors[:, 0].tolist() == pytest.approx([14 / 24, 0.0])
    assert len(comparison.notes) == 1 and "hide" in comparison.notes[0]


def test_costs_and_settings_can_be_set(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "trace.jsonl", [HOT, HOT])
    dear = compare(trace, ["fssdp"], overrides=["experts.costs.copy_s=9"])
    assert dear.replays[0].gathered_bytes == (0, 0)  # 9 s for 8 slots of 1 s
    assert dear.costs.step == COSTS
    assert dear.costs.topology.inside.bandwidth_bytes_per_s == pytest.approx(300 / 9)
    hidden = compare(trace, ["fssdp"], overrides=["experts.costs.hidden_s=1.5"])
    # of 2 s there and 4 s back 1.5 and 3 are hidden
    assert hidden.replays[0].figures()["balanced_share"] == pytest.approx(24 / (20 + 12 + 1.5))
    assert hidden.notes == ()
    twice = compare(trace, ["fsdp"], overrides=["experts.rematerialize=true"])
    assert twice.replays[0].gathered_bytes == (800, 800)
    assert twice.replays[0].reduced_bytes == (800, 800)
    assert "re-materialization" in twice.notes[0]


def test_other_ranks_begin_with_even_owners(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "trace.jsonl", [HOT, HOT])
    four = compare(trace, ["expert_parallel"], ranks=4, nodes=2)
    assert four.costs.topology.node_of_rank == (0, 0, 1, 1)
    step = four.replays[0].steps[0]
    assert step.owners[0].owners == (0, 1, 2, 3)
    assert step.owned_YW.tolist() == [[20, 0, 2, 2]]
    assert "2 sources" in four.notes[0] and "4 ranks" in four.notes[0]
    one = compare(trace, ["fssdp"], ranks=1)
    assert one.replays[0].figures()["balanced_share"] == 1.0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"policies": ["fsdpp"]}, "fsdpp .*did you mean fsdp"),
        ({"policies": ["force_balanced"]}, "no policy force_balanced"),
        ({"policies": [""]}, "nothing between two commas"),
        ({"ranks": 3, "nodes": 2}, "3 ranks on 2 nodes"),
        ({"nodes": 3}, "2 ranks on 3 nodes"),
        ({"overrides": ["experts.costs.copys=3"]}, "copys.*copy_s"),
        ({"overrides": ["train.steps=3"]}, "unknown key train"),
    ],
)
def test_what_does_not_fit_is_one_error(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    trace = recorded(tmp_path / "trace.jsonl", [HOT])
    with pytest.raises(ConfigError, match=f"(?s){said}") as raised:
        compare(trace, **{"policies": (), **asked})
    assert raised.value.got and raised.value.expected and raised.value.fix


def test_costs_that_nobody_measured_are_asked_for(tmp_path: Path) -> None:
    alone = {"costs": replace(COSTS, slot_s=0.0), "topology": Topology.single_node(1, Link(1, 0))}
    trace = recorded(tmp_path / "trace.jsonl", [HOT], owners=((0, 0, 0, 0),), **alone)
    with pytest.raises(ConfigError, match="what a slot and a copy cost") as raised:
        compare(trace)
    assert raised.value.got and raised.value.expected and raised.value.fix
    given = ["experts.costs.slot_s=1", "experts.costs.copy_s=6"]
    two = compare(trace, ["expert_parallel"], ranks=2, overrides=given)
    assert two.replays[0].figures()["balanced_share"] == pytest.approx(12 / 20)


def test_a_step_or_layer_that_is_not_there(tmp_path: Path) -> None:
    comparison = compare(recorded(tmp_path / "trace.jsonl", [HOT, HOT]), ["fsdp"])
    assert [comparison.place_of(step) for step in (0, 1, 2)] == [1, 0, 1]
    with pytest.raises(ConfigError, match="no step 3"):
        comparison.place_of(3)
    with pytest.raises(ConfigError, match="no MoE layer 1"):
        comparison.check_layer(1)


def test_the_document_has_every_step(tmp_path: Path) -> None:
    comparison = compare(recorded(tmp_path / "trace.jsonl", [HOT, HOT]), ["fssdp"])
    found: Any = document(comparison)
    (ours,) = found["policies"]
    assert found["steps"] == [1, 2] and found["ranks"] == 2
    assert ours["imbalance_after"] == [[pytest.approx(20 / 12)], [1.0]]
    assert ours["planned_copies"] == [[0], [1]] and ours["late_copies"] == [[0], [0]]
    assert ours["idle_copies"] == [[0], [0]] and ours["missed_experts"] == [[1], [0]]
    assert ours["gathered_bytes"] == [0, 100] and ours["reduced_bytes"] == [0, 200]
    assert ours["wait_s"] == [[8.0], [0.0]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks, and its corpus beside it."""
    folder = tmp_path_factory.mktemp("plan")
    write_corpus(folder / "corpus", files=4)
    write_config(folder / "toy.yaml")
    costs = set_(experts__costs__slot_s=1.0, experts__costs__copy_s=2.0)
    succeed("train", "toy.yaml", *costs, cwd=folder, ranks=2)
    return folder / "runs" / "toy"


def test_a_run_is_replayed_on_the_command_line(run: Path) -> None:
    shown = succeed(
        *("plan", run, "--policy", "fssdp,fsdp", "--layer", "1", "--step", "2"),
        *("--picture", "plan.svg", "--json", "plan.json"),
        cwd=run.parent,
    )
    lines = shown.splitlines()
    assert "steps 1 to 4" in lines[0] and "2 ranks" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["policy", "fssdp", "fsdp"]
    assert "fsdp: step 2, layer 1" in shown and "rank 1    ccOO" in shown
    assert (run.parent / "plan.svg").read_text().startswith("<svg ")
    assert (run.parent / "plan.json").read_text().startswith("{")


def test_what_the_run_logged_is_what_its_policy_does_in_the_replay(run: Path) -> None:
    succeed("plan", run, "--policy", "fssdp", "--json", "own.json", cwd=run.parent)
    (ours,) = json.loads((run.parent / "own.json").read_text())["policies"]
    lines = metrics(run)
    assert [line["load/ranks_max_over_mean"] for line in lines] == ours["imbalance_before"]
    assert [line["load/computed_max_over_mean"] for line in lines] == ours["imbalance_after"]
    assert [line["load/idle_copies"] for line in lines] == ours["idle_copies"]
    assert [line["load/missed_experts"] for line in lines] == ours["missed_experts"]
    assert [line["load/moved_experts"] for line in lines] == ours["moves"]
    assert [line["gather/bytes"] for line in lines] == ours["gathered_bytes"]
    assert [line["reduce/bytes"] for line in lines] == ours["reduced_bytes"]
    assert sum(ours["gathered_bytes"]) > 0
    for line, *copies in zip(lines, ours["planned_copies"], ours["late_copies"], strict=True):
        assert all(wait >= 0 for wait in line["load/straggler_wait_s"])
        gathers = [planned + late > 0 for planned, late in zip(*copies, strict=True)]
        assert [hidden > 0 for hidden in line["gather/hidden_s"]] == gathers
        assert [exposed > 0 for exposed in line["gather/exposed_s"]] == gathers


def test_a_resumed_run_keeps_the_loads_of_the_whole(run: Path) -> None:
    before = read_loads(run)
    shutil.copytree(run.parent.parent, run.parents[2] / "again", dirs_exist_ok=True)
    again = run.parents[2] / "again" / "runs" / "toy"
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    costs = set_(experts__costs__slot_s=1.0, experts__costs__copy_s=2.0)
    words = ("train", "toy.yaml", *costs, "--resume", "auto")
    succeed(*words, cwd=again.parents[1], ranks=2)
    after = read_loads(again)
    assert [header.step for header in after.headers] == [0, 2]
    assert after.headers[1].window.tolist() == [
        [layer.sum(0).tolist() for layer in step.routed[0]] for step in before.steps[:2]
    ]
    for old, new in zip(before.steps, after.steps, strict=True):
        assert old.step == new.step
        for ours, theirs in zip(old.routed[0], new.routed[0], strict=True):
            assert ours.tolist() == theirs.tolist()


def test_a_folder_without_loads(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no loads to replay"):
        compare(tmp_path)

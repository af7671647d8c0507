"""Real runs, recorded: overlap that is there is shown, and none where there is none."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import TOY, hecate, set_, write_config, write_corpus
from ranks import run_ranks

from collectives.transports import Launch, Steps, Transport
from hecate.data import MicroBatch
from hecate.mesh import ParallelContext
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig
from hecate.train.metrics import PhaseClock
from hecate.train.profile import Recorder
from hecate.train.profile.config import ProfileConfig

LAYERS, TOKENS, RECORDED = 3, 256, 2


class Serialised:
    """A transport whose collectives are over before their launch returns: nothing hides them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.name, self.hierarchical = transport.name, transport.hierarchical
        self.takes_everyone, self.resources = transport.takes_everyone, transport.resources

    def gather(self, launch: Launch) -> Steps:
        yield from self._whole(self._transport.gather(launch))

    def reduce(self, launch: Launch) -> Steps:
        yield from self._whole(self._transport.reduce(launch))

    def _whole(self, steps: Steps) -> Steps:
        for works in steps:
            for work in works:
                work.wait()
        return iter(())


def config(folder: str) -> RunConfig:
    toy = copy.deepcopy(TOY)
    toy["model"]["sizes"] |= {
        "hidden_size": 256,
        "moe_intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": TOKENS,
    }
    toy["data"] |= {"sequence_tokens": TOKENS, "cache": folder}
    toy["experts"] = {"policy": "fsdp"}  # copies every expert to every rank
    return RunConfig(**toy)


def record_on_rank(ctx: ParallelContext, folder: str, serialised: bool) -> list[str]:
    said: list[str] = []
    phases = PhaseClock(lambda: 0.0)
    profile = ProfileConfig(enabled=True, first_step=2, steps=RECORDED)
    recorder = Recorder(profile, ctx, Path(folder), phases.phase, said.append)

    def transport_of(watched: Transport) -> Transport:
        return Serialised(watched) if serialised else watched

    trainer = build_trainer(
        config(folder),
        ctx,
        vocab_size=300,
        phase=recorder.phase,
        gathers_by=lambda transport: transport_of(recorder.gathers(transport)),
        reductions_by=lambda transport: transport_of(recorder.reductions(transport)),
    )
    ids_BS = torch.arange(4 * TOKENS).view(4, TOKENS) % 300
    positions_BS = torch.arange(TOKENS).expand(4, TOKENS).contiguous()
    batch = MicroBatch(ids_BS, ids_BS.roll(-1, 1), positions_BS, (TOKENS,) * 4)
    recorder.begin(trainer.experts, 0)
    for step in range(1 + RECORDED):
        with recorder.step(step):
            trainer.step.run(step, [batch])
    return said


@pytest.fixture(scope="module", params=[False, True], ids=["overlapped", "serialised"])
def recorded(request, tmp_path_factory) -> tuple[bool, Path, list[list[str]]]:
    folder = tmp_path_factory.mktemp("recorded")
    return request.param, folder, run_ranks(record_on_rank, 2, str(folder), request.param)


def test_a_trace_of_two_ranks_shows_what_computation_hides(recorded) -> None:
    serialised, folder, _ = recorded
    ranks = json.loads((folder / "profile" / "summary.json").read_text())["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    for kind in ("sparse gather", "sparse reduce"):
        per_rank = [rank["communication"][kind] for rank in ranks]
        assert [one["launches"] for one in per_rank] == [LAYERS, LAYERS], "once a layer and step"
        hidden_s = sum(one["hidden_s"] for one in per_rank)
        share = hidden_s / sum(one["under_way_s"] for one in per_rank)
        if serialised:
            assert hidden_s == 0, kind
        else:
            assert share > 0.1, kind  # half and more on cores that are not shared
    for rank in ranks:
        assert rank["communication"]["dense gather"]["under_way_s"] > 0


def test_phases_add_up_to_the_step_and_know_their_layers(recorded) -> None:
    _, folder, _ = recorded
    record = json.loads((folder / "profile" / "summary.json").read_text())
    assert (record["first_step"], record["steps"]) == (2, RECORDED)
    for rank in record["ranks"]:
        phases: dict[str, Any] = rank["phases"]
        spent_s = sum(phase["forward_s"] + phase["backward_s"] for phase in phases.values())
        assert spent_s == pytest.approx(rank["step_s"])
        for name in ("attention", "router", "dispatch", "experts", "rest of a layer"):
            layers = phases[name]["layers"]
            assert sorted(layers) == [str(layer) for layer in range(LAYERS)], name
            assert all(min(both_ways) > 0 for both_ways in layers.values()), name
        for name in ("sparse gather, launch", "dense gather", "optimizer"):
            assert phases[name]["forward_s"] > 0
        for name in ("sparse reduce, launch", "dense reduce"):
            assert phases[name]["backward_s"] > 0


def test_each_rank_leaves_a_trace_and_the_first_says_what_it_shows(recorded) -> None:
    _, folder, said = recorded
    for rank in range(2):
        path = folder / "profile" / f"rank{rank}.trace.json.gz"
        names = {
            event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        }
        assert {"hecate::step 2", "hecate::step 3", "hecate::layer 2", "hecate::experts"} <= names
        assert "hecate::step 1" not in names
    ((text,), others) = said
    assert text.startswith("profile of steps 2 to 3, 2 ranks: ") and not others


def test_a_command_records_a_few_steps(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    toy = write_config(tmp_path / "toy.yaml")
    done = hecate("train", toy, "--profile", *set_(train__steps=7), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "profile of steps 4 to 6, 1 rank: " in done.stdout
    assert "USDT" not in done.stderr, "what kineto has to say"
    record = json.loads((tmp_path / "runs/toy/profile/summary.json").read_text())
    assert record["ranks"][0]["phases"]["data"]["forward_s"] > 0


def test_a_run_too_short_to_record_is_refused(tmp_path: Path) -> None:
    toy = write_config(tmp_path / "toy.yaml")
    done = hecate("train", toy, "--profile", cwd=tmp_path)
    assert done.returncode == 2 and "profile records steps to 6" in done.stderr
    assert not (tmp_path / "runs").exists()

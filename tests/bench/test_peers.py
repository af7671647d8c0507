"""Every contender trains the same curve, alone and over two ranks."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from patience import PATIENCE_S
from toy_workload import TOY, conversations, text_file

from hecate.bench.adapters import write_adapter, write_base
from hecate.bench.crew import Crew, crew_of
from hecate.bench.peers import CONTENDERS, OURS, Adapted, Contender, Implementations, Job
from hecate.bench.peers.hecate_trainer import run_config
from hecate.bench.worker import take_turns
from hecate.bench.workloads import TWO_RANKS, Layout, write_batches, write_weights
from hecate.data import DataConfig
from hecate.data.progress import quiet
from hecate.models.lora import LoraConfig
from hecate.train.optim import OptimizerConfig

STEPS = 4
ONE_THREAD = Layout("1p", world_size=1, threads=1)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    data = DataConfig(path=str(text_file(folder)), cache=str(folder / "cache"))
    return Job(
        workload=TOY,
        layout=ONE_THREAD,
        steps=STEPS,
        dtype="float32",
        seed=1,
        batches=write_batches(TOY, STEPS, data=data, seed=1, folder=folder, progress=quiet),
        weights=write_weights(TOY, seed=1, folder=folder),
        implementations=Implementations("sdpa", "grouped_mm"),
    )


def crew_that(name: str, train: Contender, job: Job, folder: Path) -> AbstractContextManager[Crew]:
    """A crew in which ``train`` takes its turns."""
    work = partial(take_turns, train, job)
    return crew_of(
        name, work, job.layout, cores=(), folder=folder, timeout_s=PATIENCE_S, seed=job.seed
    )


def losses_of(name: str, job: Job, folder: Path) -> tuple[float, ...]:
    entry = CONTENDERS[name]
    with crew_that(name, entry.train, job, folder) as crew:
        crew.wait_ready()
        return (*crew.turn(1).losses, *crew.turn(STEPS - 2).losses)


@pytest.fixture(scope="module")
def adapting(tmp_path_factory: pytest.TempPathFactory, job: Job) -> Job:
    """Conversations, of which adapters learn the answers."""
    folder = tmp_path_factory.mktemp("adapting")
    workload = replace(TOY, name="toy-lora", rows="conversations", lora=LoraConfig(rank=3, alpha=6))
    data = conversations(folder)
    weights = write_weights(workload, seed=1, folder=folder)
    base = write_base(workload, weights, folder)
    return replace(
        job,
        workload=workload,
        batches=write_batches(workload, STEPS, data=data, seed=1, folder=folder, progress=quiet),
        weights=weights,
        adapted=Adapted(base, write_adapter(workload, base, seed=1, folder=folder)),
        optimizer=OptimizerConfig(learning_rate=0.02),
    )


@pytest.mark.parametrize("peer", [name for name in CONTENDERS if name != OURS])
def test_a_peer_with_adapters_has_our_losses(peer: str, adapting: Job, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    if missing := CONTENDERS[peer].missing():
        pytest.skip(missing)
    job = replace(adapting, layout=TWO_RANKS)
    theirs = losses_of(peer, job, tmp_path)
    assert theirs[0] > theirs[-1] + 1e-3
    assert theirs == pytest.approx(losses_of(OURS, job, tmp_path), rel=1e-5)


def test_our_run_has_no_losses_that_peers_lack(job: Job) -> None:
    config = run_config(job)
    assert (config.router.balance_loss, config.router.z_loss) == (0.0, 0.0)
    assert config.optimizer == job.optimizer
    assert config.train.clip_norm == job.clip_norm
    assert config.schedule.kind == "constant"


@pytest.mark.parametrize("layout", [ONE_THREAD, TWO_RANKS], ids=lambda layout: layout.name)
@pytest.mark.parametrize("peer", [name for name in CONTENDERS if name != OURS])
def test_a_peer_has_our_losses(peer: str, layout: Layout, job: Job, tmp_path: Path) -> None:
    if missing := CONTENDERS[peer].missing():
        pytest.skip(missing)
    job = replace(job, layout=layout)
    theirs = losses_of(peer, job, tmp_path)
    assert len(theirs) == STEPS - 1
    assert theirs[0] > theirs[-1]
    assert theirs == pytest.approx(losses_of(OURS, job, tmp_path), rel=1e-5)


def test_the_plain_loop_chooses_its_implementations(job: Job, tmp_path: Path) -> None:
    job = replace(job, implementations=None)
    plain = CONTENDERS["plain"].train
    with crew_that("plain", plain, job, tmp_path) as crew:
        settings = crew.wait_ready()
    assert settings["experts"] in ("eager", "grouped_mm", "batched_mm")
    assert settings["attention"] in ("sdpa", "eager")
    assert len(re.findall(r"\w+ \d+\.\d+ s", settings["tried"])) == 5, settings["tried"]

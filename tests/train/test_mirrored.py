"""A run and its mirror: what is copied when, what is fetched, what happens when neither goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs import json_lines
from patience import until
from ranks import run_ranks
from stopped_runs import STEPS, STOP, Case, Runs, final_state, train_on_rank

from hecate.checkpoint.folder import keep_newest
from hecate.checkpoint.integrity import FileRecord, PartRecord, write_record
from hecate.checkpoint.mirror import Mirror
from hecate.errors import HecateError
from hecate.mesh import ParallelContext
from hecate.train.mirrored import Copier, fetch_newest


def save(run: Path, step: int) -> None:
    path = run / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_text("weights")
    write_record(path, step, "{}", {"__0_0.distcp": FileRecord((PartRecord("", (), 7, 0),))})


def test_a_run_goes_on_where_its_folder_is_empty_as_if_nothing_had_been(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    lost, far = runs.stopped(Case(), 2, "lost"), tmp_path / "far"
    Mirror(str(far), "run").put(lost, lost / "checkpoints" / f"step-{STOP:08d}", STOP)
    config = Case().config(tmp_path, "run")
    checkpoint = config.checkpoint.model_copy(update={"mirror": str(far), "keep": 1})
    run_ranks(train_on_rank, 2, config.model_copy(update={"checkpoint": checkpoint}), "auto")
    run = tmp_path / "runs" / "run"
    expected, found = final_state(runs.straight(Case(), 2)), final_state(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    starts = [line["step"] for line in json_lines(run / "starts.jsonl")]
    assert starts == [0, STOP]
    assert Mirror(str(far), "run").steps() == [STEPS]
    assert (far / "run" / "starts.jsonl").read_bytes() == (run / "starts.jsonl").read_bytes()


def ask(ctx: ParallelContext, folder: Path) -> list[tuple[str, list[str]]]:
    """Fetch from mirrors that are full, full, broken and, with an empty folder, broken."""
    answers = []
    for mirror, resume in (("full", "auto"), ("full", "none"), ("broken", "auto"), ("broken", "")):
        config = Case().config(folder, "run")
        checkpoint = config.checkpoint.model_copy(update={"mirror": str(folder / mirror)})
        config = config.model_copy(update={"checkpoint": checkpoint})
        run = Path(config.folder, config.name) if resume else folder / "empty"
        said: list[str] = []
        try:
            fetch_newest(config, run, resume or "auto", ctx.groups.control, said.append)
            answers.append(("", said))
        except HecateError as error:
            answers.append((str(error), said))
    return answers


def test_every_rank_hears_why_a_mirror_cannot_be_used(tmp_path: Path) -> None:
    save(tmp_path / "full" / "run", 40)
    save(tmp_path / "broken" / "run", 50)
    (tmp_path / "broken" / "run" / "checkpoints" / "step-00000050" / "__0_0.distcp").unlink()
    first, second = run_ranks(ask, 2, tmp_path)
    assert [error for error, _ in first] == [error for error, _ in second]
    (fetched, taken, without, lost) = first
    assert fetched == ("", [f"fetched step-00000040 from {tmp_path}/full/run"])
    assert "already holds checkpoints of a run" in taken[0] and "step 40" in taken[0]
    assert not without[0] and "going on without the mirror" in without[1][0]
    assert "reading a checkpoint" in lost[0] and f"{tmp_path}/broken" in lost[0]


class Delayed(Mirror):
    """A copy during which something else happens."""

    meanwhile: Callable[[], None]

    def put(
        self, run: Path, checkpoint: Path, step: int, going_on: Callable[[], bool] = lambda: True
    ) -> None:
        self.meanwhile()
        super().put(run, checkpoint, step, going_on)


def test_the_newest_is_copied_even_if_it_is_deleted_meanwhile(tmp_path: Path) -> None:
    run, said = tmp_path / "run", []
    mirror = Delayed(str(tmp_path / "far"), "run")
    copier = Copier(mirror, run, 2, said.append)
    copier.look()
    save(run, 10)
    save(run, 20)

    def two_more() -> None:
        save(run, 30)
        save(run, 40)
        keep_newest(run / "checkpoints", 1)
        mirror.meanwhile = lambda: None

    mirror.meanwhile = two_more
    copier.look()
    assert mirror.steps() == [20] and not said
    copier.look()
    assert mirror.steps() == [20, 40]
    assert not list(run.glob(".mirror-*"))


def test_a_copy_that_is_given_up_stays_half(tmp_path: Path) -> None:
    run = tmp_path / "run"
    mirror = Delayed(str(tmp_path / "far"), "run")
    copier = Copier(mirror, run, 2, print)
    save(run, 10)
    mirror.meanwhile = copier.give_up
    copier.look()
    assert mirror.steps() == []
    mirror.meanwhile = lambda: None
    Copier(mirror, run, 2, print).look()
    assert mirror.steps() == [10]


def test_a_failure_is_said_once_and_the_next_checkpoint_is_tried(tmp_path: Path) -> None:
    run, far, said = tmp_path / "run", tmp_path / "far", []
    far.write_text("no folder")
    copier = Copier(Mirror(str(far), "run"), run, 2, said.append)
    for step in (10, 20):
        save(run, step)
        copier.look()
        copier.look()
    assert len(said) == 1 and "checkpoint 10 is here only" in said[0]
    far.unlink()
    copier.finish()
    assert Mirror(str(far), "run").steps() == [20]
    save(far / "run", 99)
    save(run, 30)
    copier.look()
    assert len(said) == 2 and "checkpoints later than step 30" in said[1]


def test_checkpoints_are_copied_as_they_appear(tmp_path: Path) -> None:
    run, over = tmp_path / "run", threading.Event()
    mirror = Mirror(str(tmp_path / "far"), "run")
    thread = threading.Thread(target=Copier(mirror, run, 0, print).watch, args=(over,))
    thread.start()
    try:
        save(run, 10)
        until(lambda: mirror.steps() == [10], "the copy of step 10")
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("resume", ["auto", "none"])
def test_without_a_mirror_nothing_is_asked(tmp_path: Path, resume: str) -> None:
    config = Case().config(tmp_path, "run")
    fetch_newest(config, tmp_path, resume, None, print)  # type: ignore[arg-type]

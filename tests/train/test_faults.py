"""Killed ranks, damaged checkpoints and full disks: one message, and the run goes on from there."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jobs import (
    finish,
    fork_ranks,
    hecate,
    json_lines,
    metrics,
    set_,
    start,
    succeed,
    wait_for,
    wait_for_step,
    write_config,
    write_corpus,
)

from hecate.checkpoint.reader import CheckpointReader
from hecate.train.stopping import STOPPED

pytestmark = pytest.mark.slow

STEPS, EVERY = 40, 4
ENDS_WITHIN_S = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a configuration, and a run of two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("faults")
    write_corpus(folder / "corpus")
    write_config(folder / "toy.yaml")
    changes = set_(name="straight", train__steps=STEPS, checkpoint__every=EVERY)
    succeed("train", "toy.yaml", *changes, cwd=folder, ranks=2)
    return folder


def rank_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("RANK", "")
    except psutil.Error:
        return ""


def our_messages(stderr: str) -> list[str]:
    """What ranks said, without torchrun's summary, which repeats it."""
    return re.findall(r"^error.*(?:\n  .*)*", stderr, re.MULTILINE)


def checkpoints(run: Path) -> list[str]:
    """The checkpoints of a run, each read to see that it is whole."""
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    for name in names:
        reader = CheckpointReader(run / "checkpoints" / name)
        assert all(reader.tensor(key).numel() >= 0 for key in reader.keys())
    return names


def numbers(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics(run)]


def held_out_loss(run: Path) -> float:
    last = json_lines(run / "metrics.jsonl")[-1]
    return float(last["eval/loss"])


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_rank_ends_the_job_and_the_run_goes_on_bit_for_bit(
    folder: Path, seed: int
) -> None:
    pick = random.Random(seed)
    victim, step = str(pick.randrange(2)), pick.randrange(EVERY + 2, STEPS // 2)
    run = folder / "runs" / f"killed-{seed}"
    changes = set_(name=run.name, train__steps=STEPS, checkpoint__every=EVERY)
    launcher = start("train", "toy.yaml", *changes, cwd=folder, ranks=2)
    wait_for_step(run, 1, launcher)
    ranks = [child for child in psutil.Process(launcher.pid).children() if rank_of(child)]
    (doomed,) = [child for child in ranks if rank_of(child) == victim]
    saved = run / "checkpoints"
    wait_for(lambda: any(saved.glob("step-*")), "a checkpoint", launcher)
    wait_for_step(run, step, launcher)
    doomed.kill()
    killed_s = time.monotonic()
    done = finish(launcher)
    assert time.monotonic() - killed_s < ENDS_WITHIN_S
    assert done.returncode != 0
    assert not any(child.is_running() for child in ranks)
    # torchrun may end the other rank before it has noticed; then its summary is all there is.
    messages = our_messages(done.stderr.split("torch/distributed/elastic")[0])
    assert len(messages) <= 1
    assert all("another rank died" in message for message in messages)
    assert re.search(rf"rank +: {victim} .*\n.*exitcode +: -9 .*SIGKILL", done.stderr)
    last_step = numbers(run)[-1][0]
    assert last_step < STEPS
    names = checkpoints(run)
    assert names and int(names[-1][5:]) <= last_step
    succeed("train", "toy.yaml", *changes, "--resume", "auto", cwd=folder, ranks=2)
    assert numbers(run) == numbers(folder / "runs" / "straight")
    assert held_out_loss(run) == held_out_loss(folder / "runs" / "straight")


def test_one_rank_that_is_asked_to_end_stops_all_with_a_checkpoint_of_that_step(
    folder: Path,
) -> None:
    """Without torchrun: it would pass the signal on to both. Both end with the code for it."""
    run = folder / "runs" / "stopped"
    changes = set_(name=run.name, train__steps=STEPS, checkpoint__every=1000)
    ranks = fork_ranks("train", "toy.yaml", *changes, cwd=folder, ranks=2)
    try:
        wait_for_step(run, 7, ranks[0])
        ranks[1].send_signal(signal.SIGUSR1)
        done = [finish(rank) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert [rank.returncode for rank in done] == [STOPPED, STOPPED], done[0].stderr
    stopped_at = numbers(run)[-1][0]
    assert 7 <= stopped_at < STEPS
    assert f"stopped on request after step {stopped_at} of {STEPS}" in done[0].stdout
    assert checkpoints(run) == [f"step-{stopped_at:08d}"]
    succeed("train", "toy.yaml", *changes, "--resume", "auto", cwd=folder, ranks=2)
    assert numbers(run) == numbers(folder / "runs" / "straight")


@pytest.mark.parametrize("victim", [0, 1])
def test_the_rank_that_is_left_says_so_once(folder: Path, victim: int) -> None:
    """Without torchrun, which would end it, and with a checkpoint under way at every step."""
    run = folder / "runs" / f"left-{victim}"
    changes = set_(name=run.name, train__steps=2000, checkpoint__every=1)
    ranks = fork_ranks("train", "toy.yaml", *changes, cwd=folder, ranks=2)
    try:
        wait_for_step(run, random.Random(victim).randrange(5, 15), ranks[0])
        ranks[victim].kill()
        killed_s = time.monotonic()
        done = finish(ranks[1 - victim])
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert time.monotonic() - killed_s < ENDS_WITHIN_S
    assert ranks[victim].returncode == -signal.SIGKILL
    assert done.returncode == 1
    (message,) = our_messages(done.stderr)
    assert "another rank died" in message and "--resume auto" in message
    assert "Traceback" not in done.stderr
    assert checkpoints(run)


def test_a_truncated_checkpoint_is_refused_by_name(folder: Path) -> None:
    run = folder / "runs" / "truncated"
    shutil.copytree(folder / "runs" / "straight", run)
    newest = run / "checkpoints" / f"step-{STEPS:08d}"
    file = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1)
    changes = set_(name=run.name, train__steps=STEPS + 1)
    words = ["train", "toy.yaml", *changes, "--resume", "auto"]
    for command in (words, ["eval", run], ["export", run, "out"], ["generate", run, "a"]):
        done = hecate(*command, cwd=folder)
        assert done.returncode == 2, done.stderr
        (message,) = our_messages(done.stderr)
        assert f"{newest.name} is damaged: {file.name}" in message.replace(f"{folder}/", "")
        assert f"step-{STEPS - EVERY:08d}" in message and "Traceback" not in done.stderr
    assert not (folder / "out").exists()
    newest.rename(run / "elsewhere")
    succeed(*words, cwd=folder)
    assert [step for step, _, _ in numbers(run)] == list(range(1, STEPS + 2))


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own with room for a few checkpoints, but not for eight."""
    disk = folder / "disk"
    disk.mkdir()
    whole = folder / "runs" / "straight" / "checkpoints" / f"step-{STEPS:08d}"
    pages = sum(-(-path.stat().st_size // 4096) + 1 for path in whole.iterdir())
    size = f"size={int(3.5 * pages) * 4}k"
    try:
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_leaves_whole_checkpoints(
    folder: Path, small_disk: Path
) -> None:
    changes = set_(folder=small_disk, train__steps=8, checkpoint__every=1, checkpoint__keep=0)
    done = hecate("train", "toy.yaml", *changes, cwd=folder)
    assert done.returncode == 2, done.stderr
    (message,) = our_messages(done.stderr)
    assert "No space left on device" in message and "fix:" in message
    assert "Traceback" not in done.stderr
    run = small_disk / "toy"
    assert 1 <= len(checkpoints(run)) < 8
    roomier = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(roomier, check=True, capture_output=True)
    succeed("train", "toy.yaml", *changes, "--resume", "auto", cwd=folder)
    assert checkpoints(run) == [f"step-{step:08d}" for step in range(1, 9)]


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(folder: Path) -> None:
    changes = set_(name="limited", checkpoint__every=1, checkpoint__keep=0)
    succeed("train", "toy.yaml", *changes, *set_(train__steps=1), cwd=folder)
    run = folder / "runs" / "limited"
    file = max((run / "checkpoints" / "step-00000001").iterdir(), key=lambda f: f.stat().st_size)
    words = ["train", "toy.yaml", *changes, *set_(train__steps=4), "--resume", "auto"]
    done = hecate(*words, cwd=folder, largest_file_bytes=file.stat().st_size // 2)
    assert done.returncode == 2, done.stderr
    (message,) = our_messages(done.stderr)
    assert "File too large" in message and "ulimit -f" in message
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
    succeed(*words, cwd=folder)
    assert checkpoints(run)[-1] == "step-00000004"

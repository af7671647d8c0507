"""``hecate train CONFIG --ranks N``: the ranks of one machine under a supervisor."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from hecate.errors import ConfigError
from hecate.train.config import RunConfig
from hecate.train.elastic.member import Member
from hecate.train.elastic.members import Running, fork
from hecate.train.elastic.roster import Roster
from hecate.train.elastic.supervisor import Supervisor
from hecate.train.notices import saying
from hecate.train.run import TrainResult
from hecate.train.stopping import StopRequest


def train_elastic(
    config: RunConfig,
    *,
    ranks: int,
    least: int,
    origins: Mapping[str, str],
    resume: str,
) -> TrainResult:
    """Train with ``ranks`` processes of this machine, which a failure does not end.

    It goes on from the newest checkpoint with at least ``least`` of them. SIGTERM, SIGUSR1 and
    Ctrl-C end the run with a checkpoint, a second Ctrl-C at once. Raises ``ConfigError`` for
    numbers that make no job, ``UserError`` for what the user can mend and ``HecateError`` where the
    job only fails.
    """
    if not 1 <= least <= ranks:
        raise ConfigError(
            "a job needs a rank, and at most all of them",
            got=f"--ranks {ranks} --min-ranks {least}",
            expected="1 <= min-ranks <= ranks",
        )
    folder = Path(config.folder, config.name)
    elastic = config.elastic
    roster = Roster.of(ranks, least=least, attempts=elastic.attempts, replaces=elastic.replace)
    stop = StopRequest()
    with (
        tempfile.TemporaryDirectory(prefix="hecate-ranks-") as stores,
        stop.listening(interrupts=True),
    ):
        supervisor = Supervisor(
            roster,
            elastic,
            folder,
            Path(stores),
            resume,
            fork=partial(_fork, config, origins, threads_of_a_rank(ranks, os.environ)),
            say=saying(Console(stderr=True)),
            stop=stop,
        )
        return supervisor.run()


def _fork(config: RunConfig, origins: Mapping[str, str], threads: int, slot: int) -> Running:
    return fork(Member(slot, threads, config, origins))


def threads_of_a_rank(ranks: int, environment: Mapping[str, str]) -> int:
    """OMP_NUM_THREADS where it is set, else an equal share of the cores that may be used."""
    said = environment.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() else max(1, len(os.sched_getaffinity(0)) // ranks)

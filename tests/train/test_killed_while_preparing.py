"""A rank that dies before the first step: the others say so, wherever they wait for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from jobs import write_corpus
from ranks import run_mortals
from stopped_runs import Case

from hecate.errors import CollectiveFailure
from hecate.mesh import ParallelContext
from hecate.train import build, records, run
from hecate.train.config import RunConfig
from hecate.train.run import Launch, train_on
from hecate.train.stopping import StopRequest

# Where the victim dies, in order; the others wait in the next collective, which is FSDP2's own,
# one of measuring costs, or one of the checkpoint's.
PLACES = {
    "loss": (build, "choose_loss"),
    "checkpoint": (run, "resume_from"),
    "header": (records, "_loads_header"),
}


def train_on_rank(ctx: ParallelContext, config: RunConfig, place: str) -> str:
    if ctx.rank == 1:
        module, name = PLACES[place]
        setattr(module, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    try:
        train_on(ctx, config, Launch({}), StopRequest())
    except CollectiveFailure as failure:
        return str(failure)
    return "nothing went wrong"


@pytest.mark.parametrize("place", list(PLACES))
def test_who_waits_for_a_dead_rank_says_so(place: str, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", files=4)
    config = Case().config(tmp_path, "toy")
    heard = run_mortals(train_on_rank, 2, config, place)
    assert list(heard) == [0]
    assert "most likely because another rank died" in heard[0], heard[0]

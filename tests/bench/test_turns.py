"""Steps on request: nothing runs between turns, and the clock stands still there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from hecate.bench.turns import Ready, Turn, Turns, TurnsOver


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_turn_has_the_steps_that_were_asked_for(pipe: tuple[Connection, Connection]) -> None:
    asks, answers = pipe
    times = iter([10.0, 13.0, 100.0, 101.0, 200.0])
    turns = Turns(answers, lambda: next(times))
    asks.send(2)
    asks.send(1)
    asks.send(5)
    turns.ready(experts="eager")
    for loss in (3.0, 2.0, 1.0):
        turns.step_done(loss)
    assert asks.recv() == Ready({"experts": "eager"})
    first, second = asks.recv(), asks.recv()
    assert isinstance(first, Turn)
    assert (first.seconds, first.losses) == (3.0, (3.0, 2.0))
    assert (second.seconds, second.losses) == (1.0, (1.0,))
    assert first.peak_bytes > 1 << 20
    assert not asks.poll()


def test_a_closed_pipe_ends_the_training(pipe: tuple[Connection, Connection]) -> None:
    asks, answers = pipe
    turns = Turns(answers, lambda: 0.0)
    asks.send(1)
    turns.ready()
    asks.close()
    with pytest.raises((TurnsOver, BrokenPipeError)):
        turns.step_done(1.0)

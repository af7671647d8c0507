"""Rounds of one model in one layout: our trainer and a peer, a few steps each, again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hecate.bench.compare import Measured
from hecate.bench.crew import ContenderError, Crew, crew_of, usable_cores
from hecate.bench.peers import OURS, Entry, Implementations, Job
from hecate.bench.turns import Turn
from hecate.bench.worker import take_turns

CHOOSES = "plain"
"""The peer that measures which implementations are fastest, for the peers after it."""

Say = Callable[[str], None]
"""Shows one line about what goes on."""


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    A turn has the steps that our trainer needs about ``turn_s`` for. Rounds with a peer go on until
    all peers in all stages together have taken ``total_s``, shared evenly among those left, but not
    below ``least_rounds`` nor above ``most_rounds``. ``trial_runs``: timed runs of each setting
    that a peer chooses from.
    """

    warm_up_steps: int
    turn_s: float
    least_rounds: int
    most_rounds: int
    most_turn_steps: int
    total_s: float
    trial_runs: int
    answer_timeout_s: float = 300.0

    def most_steps(self, num_peers: int) -> int:
        """What our trainer, which meets every peer, may be asked for."""
        return self.warm_up_steps + max(1, num_peers) * self.most_rounds * self.most_turn_steps

    def steps_of_a_turn(self, step_s: float) -> int:
        return max(1, min(self.most_turn_steps, math.ceil(self.turn_s / step_s)))


class Stage:
    """One model in one layout: our trainer, and one peer after another beside it."""

    def __init__(
        self,
        job: Job,
        contenders: Mapping[str, Entry],
        pace: Pace,
        deadline: float,
        folder: Path,
        say: Say,
    ) -> None:
        self._job, self._contenders, self._pace = job, contenders, pace
        self._deadline, self._say = deadline, say
        self._folder = folder / f"{job.workload.name}-{job.layout.name}"
        self._folder.mkdir()
        self._name = f"{job.workload.name} {job.layout.name}"
        self._steps = 0

    def run(self) -> list[Measured]:
        """What each contender did, in the order of the contenders."""
        peers = [name for name in self._contenders if name != OURS]
        with self._crew(OURS) as crew:
            ours = replace(self._blank(OURS), settings=crew.wait_ready())
            ours = replace(ours, warm_up=self._warm_up(crew))
            measured = {}
            for number, name in enumerate(peers):
                left_s = max(0.0, self._deadline - time.monotonic())
                deadline = time.monotonic() + left_s / (len(peers) - number)
                measured[name], turns = self._meet(name, crew, deadline)
                ours = replace(ours, turns=(*ours.turns, *turns))
            while len(ours.turns) < self._pace.least_rounds:  # no peer was there
                ours = replace(ours, turns=(*ours.turns, crew.turn(self._steps)))
        measured[OURS] = ours
        return [measured[name] for name in self._contenders]

    def _crew(self, name: str) -> AbstractContextManager[Crew]:
        title = self._contenders[name].title
        self._say(f"{self._name}: building {title}")
        return crew_of(
            name,
            partial(take_turns, self._contenders[name].train, self._job),
            self._job.layout,
            cores=usable_cores(),
            folder=self._folder,
            timeout_s=self._pace.answer_timeout_s,
            seed=self._job.seed,
            keep_freed_memory=self._job.keep_freed_memory,
        )

    def _blank(self, name: str) -> Measured:
        workload, layout = self._job.workload, self._job.layout
        title = self._contenders[name].title
        return Measured(workload.name, layout.name, name, title, workload.tokens_per_step)

    def _warm_up(self, crew: Crew) -> Turn:
        turn = crew.turn(self._pace.warm_up_steps)
        if not self._steps:
            self._steps = self._pace.steps_of_a_turn(turn.seconds / self._pace.warm_up_steps)
        return turn

    def _meet(self, name: str, ours: Crew, deadline: float) -> tuple[Measured, list[Turn]]:
        """Rounds with one peer; and our turns in all of them, also where the peer failed."""
        measured = self._blank(name)
        our_turns: list[Turn] = []
        if missing := self._contenders[name].missing():
            return replace(measured, problem=missing), our_turns
        with self._crew(name) as peer:
            try:
                measured = replace(measured, settings=peer.wait_ready())
                if name == CHOOSES:
                    self._adopt(measured.settings)
                measured = replace(measured, warm_up=self._warm_up(peer))
                for number in range(self._pace.most_rounds):
                    if number >= self._pace.least_rounds and time.monotonic() > deadline:
                        break
                    turns = {}
                    for crew in (ours, peer) if number % 2 else (peer, ours):
                        turns[crew.name] = crew.turn(self._steps)
                        if crew is ours:
                            our_turns.append(turns[OURS])
                    measured = replace(
                        measured,
                        turns=(*measured.turns, turns[name]),
                        ours=(*measured.ours, turns[OURS]),
                    )
                    self._tell(measured)
            except ContenderError as failure:
                if failure.contender == OURS:
                    raise
                self._say(f"{self._name}: {failure}")
                measured = replace(measured, problem=f"failed: {failure.reason}")
        return measured, our_turns

    def _adopt(self, settings: Mapping[str, str]) -> None:
        chosen = Implementations(settings["attention"], settings["experts"])
        self._job = replace(self._job, implementations=chosen)

    def _tell(self, measured: Measured) -> None:
        rate, ratio = measured.rates[-1], measured.ratios[-1]
        self._say(
            f"{self._name}: round {len(measured.turns)} with {measured.title}: "
            f"{rate * ratio:,.0f} tokens/s, it {rate:,.0f}"
        )

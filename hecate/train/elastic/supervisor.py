"""Generations of members, each from the newest checkpoint on, until one comes to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from hecate.checkpoint.folder import newest_checkpoint, saved_steps
from hecate.errors import HecateError, UserError
from hecate.train.elastic.config import ElasticConfig
from hecate.train.elastic.members import Fork, Running
from hecate.train.elastic.messages import (
    Answer,
    Began,
    Done,
    Failed,
    Join,
    Joined,
    Left,
    Measured,
)
from hecate.train.elastic.recoveries import Recovery, record_recovery
from hecate.train.elastic.roster import Roster
from hecate.train.notices import Say
from hecate.train.run import TrainResult

_LOOKS_EVERY_S = 0.5  # for a request to stop; deaths and messages wake it at once
_ASKS_EVERY_S = 1.0  # members to stop: one that was just forked does not listen yet


@dataclass
class Generation:
    """One group of ranks: who is in it, and how far each has come."""

    number: int
    rank_of: Mapping[int, int]  # by slot
    joined: set[int] = field(default_factory=set)
    free: set[int] = field(default_factory=set)  # left or done: wait for the next
    dead: dict[int, str] = field(default_factory=dict)  # by slot: how
    unmet: set[int] = field(default_factory=set)  # ended while they waited for a dead one to join
    results: dict[int, TrainResult] = field(default_factory=dict)
    failures: dict[int, Failed] = field(default_factory=dict)
    why: str = ""  # of the first rank that left
    steps: list[int] = field(default_factory=list)  # that rank 0 began
    marks: dict[str, float] = field(default_factory=dict)  # seconds of the clock

    @property
    def failing(self) -> bool:
        return bool(self.dead or self.failures or self.why)

    @property
    def over(self) -> bool:
        return not self.under_way

    @property
    def under_way(self) -> set[int]:
        """The slots of which nothing final is known."""
        return set(self.rank_of) - self.free - set(self.dead) - self.unmet

    def cause(self) -> str:
        """What is said of its failure."""
        if self.dead:
            return "; ".join(f"rank {self.rank_of[s]} {how}" for s, how in self.dead.items())
        return self.why.splitlines()[0]

    def account(self) -> str:
        """The cause, and the first error of a member that could say one."""
        errors = [failed.message for failed in self.failures.values()]
        return "\n".join((self.cause(), *errors[:1]))


class Supervisor:
    """Runs a job of the ranks of ``roster`` in the run's ``folder``.

    ``fork`` makes the process of a slot; ``stop`` says whether the job was asked to end; ``say``
    tells people. ``stores`` is a folder in which ranks meet. ``resume`` is for the first start.
    """

    def __init__(
        self,
        roster: Roster,
        config: ElasticConfig,
        folder: Path,
        stores: Path,
        resume: str,
        *,
        fork: Fork,
        say: Say,
        stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roster, self._config, self._folder, self._stores = roster, config, folder, stores
        self._resume, self._fork, self._say, self._stop = resume, fork, say, stop
        self._clock = clock
        self._running: dict[int, Running] = {}
        self._stopping = False
        self._asks_at_s = 0.0
        self._last: Generation | None = None
        self._cause = ""
        self._peak_flops = 0.0

    def run(self) -> TrainResult:
        """Rank 0's result. Raises ``HecateError`` where the job cannot go on."""
        number = 0
        try:
            while True:
                generation = self._form(number)
                self._attend(generation)
                if not generation.failing:
                    break
                self._next_roster(generation)
                self._last, self._cause = generation, generation.cause()
                number += 1
        except BaseException:
            for running in self._running.values():
                running.kill()
            raise
        for running in self._running.values():
            running.end()
        return next(r for slot, r in generation.results.items() if generation.rank_of[slot] == 0)

    def _form(self, number: int) -> Generation:
        """Fork who is missing, and tell everybody where to meet."""
        present = self._roster.present
        generation = Generation(number, {slot: rank for rank, slot in enumerate(present)})
        for slot in [slot for slot in self._running if slot not in present]:
            self._running.pop(slot).end()
        for slot in present:
            if slot not in self._running:
                self._running[slot] = self._fork(slot)
        generation.marks["fork"] = self._clock()
        for slot, rank in generation.rank_of.items():
            store = self._stores / f"generation-{number}"
            how, cause = self._how(number), self._cause
            join = Join(number, rank, len(present), store, how, cause, self._peak_flops)
            self._running[slot].tell(join)
        return generation

    def _how(self, number: int) -> str:
        """What to resume from: after a failure the newest checkpoint, if there is one."""
        if number == 0 or (newest_checkpoint(self._checkpoints) is None and self._resume != "none"):
            return self._resume
        return "auto"

    @property
    def _checkpoints(self) -> Path:
        return self._folder / "checkpoints"

    def _attend(self, generation: Generation) -> None:
        """Return when all its members are done, or have left or died because one failed."""
        give_up_s = float("inf")
        while not generation.over:
            self._listen(generation)
            self._pass_on_stop()
            if generation.failing and give_up_s == float("inf"):
                generation.marks["failed"] = self._clock()
                give_up_s = self._clock() + self._config.leave_s
            for slot in generation.under_way if generation.failing else ():
                if self._clock() > give_up_s:
                    self._bury(generation, slot)
                    generation.dead[slot] = "did not answer"
                elif generation.dead and slot not in generation.joined:
                    # Nobody answers it: to fork another is faster than to wait for a timeout.
                    self._bury(generation, slot)
                    generation.unmet.add(slot)
        generation.marks["left"] = self._clock()

    def _listen(self, generation: Generation) -> None:
        waited = [running.pipe for running in self._running.values()]
        ends = [running.process.sentinel for running in self._running.values()]
        wait([*waited, *ends], timeout=_LOOKS_EVERY_S)
        for slot, running in list(self._running.items()):
            alive = running.process.is_alive()  # before hearing: what it said last counts
            for answer in running.hear():
                if answer.generation == generation.number:
                    self._note(generation, slot, answer)
            if not alive:
                generation.dead[slot] = self._bury(generation, slot).fate()

    def _note(self, generation: Generation, slot: int, answer: Answer) -> None:
        match answer:
            case Joined():
                generation.joined.add(slot)
                if len(generation.joined) == len(generation.rank_of):
                    generation.marks["join"] = self._clock()
            case Measured(_, peak_flops):
                self._peak_flops = peak_flops
            case Began(_, step) if generation.rank_of[slot] == 0:
                generation.steps.append(step)
                if len(generation.steps) <= 2:
                    generation.marks["prepare" if len(generation.steps) == 1 else "step"] = (
                        self._clock()
                    )
            case Left(_, why):
                generation.why = generation.why or why
                generation.free.add(slot)
            case Done(_, result):
                generation.results[slot] = result
                generation.free.add(slot)
            case Failed():
                generation.failures[slot] = answer
        if {"join", "prepare", "step"} <= generation.marks.keys():
            self._tell_recovery(generation)

    def _bury(self, generation: Generation, slot: int) -> Running:
        """Forget a member that is dead, or is to be; returns it."""
        running = self._running.pop(slot)
        for answer in running.hear():
            if answer.generation == generation.number:
                self._note(generation, slot, answer)
        running.kill()
        running.pipe.close()
        generation.free.discard(slot)
        return running

    def _pass_on_stop(self) -> None:
        if self._stop() and self._clock() >= self._asks_at_s:
            if not self._stopping:
                self._say("ending with a checkpoint of the step under way; Ctrl-C ends at once")
            self._stopping, self._asks_at_s = True, self._clock() + _ASKS_EVERY_S
            for running in self._running.values():
                running.stop()

    def _next_roster(self, generation: Generation) -> None:
        """Decide who goes on. Raises where nobody should."""
        for failed in generation.failures.values():
            if failed.exit_code == UserError.exit_code:
                raise UserError(failed.message)
        saved = max(saved_steps(self._checkpoints), default=0)
        if self._stopping:
            raise HecateError(
                "the job was asked to end, and failed before it had saved a checkpoint",
                got=generation.account(),
                fix=f"go on from step {saved} with --resume auto",
            )
        after = self._roster.after(generation.dead.keys(), saved)
        if after is None:
            raise HecateError(
                f"the job failed again and again without a newer checkpoint than step {saved}",
                got=generation.account(),
                expected=f"fewer than elastic.attempts = {self._config.attempts} failures in a "
                f"row, and at least {self._roster.least} ranks",
                fix="mend what the first error says, then --resume auto",
            )
        for failed in generation.failures.values():
            self._say(failed.message)
        self._roster = after

    def _tell_recovery(self, generation: Generation) -> None:
        last = self._last
        if last is None:
            return
        marks = [
            last.marks["failed"],
            last.marks["left"],
            *(generation.marks[name] for name in ("fork", "join", "prepare", "step")),
        ]
        phases = ("leave", "fork", "join", "prepare", "step")
        spans = [after - before for before, after in zip(marks, marks[1:], strict=False)]
        recovery = Recovery(
            generation.steps[0],
            time.time(),
            last.cause(),
            last.steps[-1] if last.steps else generation.steps[0],
            len(last.rank_of),
            len(generation.rank_of),
            dict(zip(phases, spans, strict=True)),
        )
        record_recovery(self._folder, recovery)
        self._say(recovery.line())
        self._last = None

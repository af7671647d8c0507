"""Whether a run whose workers failed starts again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hecate.errors import HecateError, UserError

_SHOWN = 300
# What Ray says of a dead actor is a page; whose, it is told beside it.
_DEAD = ("ActorDiedError", "ActorUnavailableError")


def first_words(error: Exception) -> str:
    """The kind of ``error`` and what it says first, on one line; of a dead worker, only that."""
    kind = type(error).__name__
    if kind in _DEAD:
        return "the worker died"
    text = " ".join(str(error).split())
    return f"{kind}: {text[:_SHOWN]}"


@dataclass
class FailureCount:
    """Failures that followed each other without a checkpoint in between.

    ``from_step``: the step that the failed attempts went on from.
    """

    allowed: int
    from_step: int = -1
    count: int = 0

    def after(self, from_step: int, failed: Mapping[int, Exception]) -> HecateError | None:
        """The error to end with after one more failure of the ranks in ``failed``, if any.

        ``from_step``: the step that this attempt went on from. What the user can mend ends a run at
        once.
        """
        for error in failed.values():
            if isinstance(error, UserError):
                return error
        self.count = self.count + 1 if from_step == self.from_step else 1
        self.from_step = from_step
        if self.count <= self.allowed:
            return None
        rank = min(failed)
        return HecateError(
            f"training failed {self.count} times without a checkpoint in between",
            got=f"rank {rank}: {first_words(failed[rank])}",
            expected=f"no more than {self.allowed} such failures (ray.max_failures)",
            fix="see what the ranks said, in logs/ of the run's folder",
        )

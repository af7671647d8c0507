"""What a replica was asked and has not answered, as the request router gets to see it."""

from __future__ import annotations

from dataclasses import dataclass

from serving.app.messages import Ticket
from serving.request import Delta, Request

MOST_SENDERS = 64
NEWEST = 0.05  # of the mean length of answers, the share of the one that ended last


@dataclass
class _Asked:
    prompt_tokens: int
    rank: int
    answers: int
    left: int  # of these
    begun: bool = False


class Backlog:
    """A request waits until its first token came; from then on its answers run.

    ``answer_tokens``: of answers of late, on average; 0 while none has ended. ``seen``: by sender,
    the number of the newest ticket that came.
    """

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}
        self.answer_tokens = 0.0
        self.seen: dict[str, int] = {}

    def add(self, request: Request, ticket: Ticket) -> None:
        """A request came. Senders of tickets that are no more are forgotten after many newer."""
        rank = ticket.wanted.rank
        asked = _Asked(len(request.prompt), rank, request.n, request.n)
        self._asked[request.request_id] = asked
        if ticket.sender:
            self.seen[ticket.sender] = max(ticket.number, self.seen.pop(ticket.sender, 0))
            if len(self.seen) > MOST_SENDERS:
                del self.seen[next(iter(self.seen))]

    def take(self, delta: Delta) -> None:
        """What a step made of one."""
        asked = self._asked.get(delta.request_id)
        if asked is None:
            return
        asked.begun = True
        if delta.finish is None:
            return
        asked.left -= 1
        if not asked.left:
            del self._asked[delta.request_id]
            tokens = delta.usage.generated / asked.answers
            share = NEWEST if self.answer_tokens else 1.0
            self.answer_tokens += share * (tokens - self.answer_tokens)

    def drop(self, request_id: str) -> None:
        """It was refused or cancelled; unknown ids are fine."""
        self._asked.pop(request_id, None)

    @property
    def running(self) -> tuple[int, ...]:
        """The rank of each answer that is being made."""
        return tuple(
            each.rank for each in self._asked.values() if each.begun for _ in range(each.left)
        )

    @property
    def queued(self) -> tuple[tuple[int, int], ...]:
        """Tokens and rank of each prompt that waits."""
        return tuple(
            (each.prompt_tokens, each.rank) for each in self._asked.values() if not each.begun
        )

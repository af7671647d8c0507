"""Which replica a request goes to: the one with the least tokens in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.app.messages import Ticket


class LeastTokens:
    """Goes by what replicas last reported, and by what was sent to each since.

    A report is seen a while after it was made; without counting what was sent meanwhile, all that
    comes in between would go to the one that was idle.
    """

    def __init__(self) -> None:
        self._reported: dict[str, tuple[int, int]] = {}
        self._sent: dict[str, int] = {}
        self._probes: dict[str, int] = {}

    def report(self, replica: str, number: int, tokens_in_flight: int) -> None:
        """Take report ``number`` of a replica; one that is known already changes nothing."""
        if self._reported.get(replica, (-1, 0))[0] != number:
            self._reported[replica] = (number, tokens_in_flight)
            self._sent[replica] = 0

    def sent(self, replica: str, ticket: Ticket) -> None:
        """Count what went to ``replica``."""
        self._sent[replica] = self._sent.get(replica, 0) + ticket.tokens
        self._probes[replica] = self._probes.get(replica, 0) + ticket.probe

    def order(self, replicas: Sequence[str], ticket: Ticket) -> list[str]:
        """Those of ``replicas`` that will do, the best one first."""
        if ticket.replica in replicas:
            return [ticket.replica]
        if ticket.probe:
            return sorted(replicas, key=lambda replica: (self._probes.get(replica, 0), replica))
        left = [replica for replica in replicas if replica not in ticket.avoid]
        return sorted(
            left, key=lambda replica: (replica in ticket.full, self.tokens(replica), replica)
        )

    def tokens(self, replica: str) -> int:
        return self._reported.get(replica, (0, 0))[1] + self._sent.get(replica, 0)

    def keep(self, replicas: Mapping[str, object]) -> None:
        """Forget replicas that are no more."""
        for gone in [name for name in self._sent if name not in replicas]:
            self._sent.pop(gone)
            self._reported.pop(gone, None)
            self._probes.pop(gone, None)

"""Which replica a request goes to: the one with the least tokens in flight, or where its adapter
costs the least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from serving.app.messages import Standing, Ticket
from serving.lora.placement import Placement, RankAware, ReplicaState, Wanted, baselines
from serving.lora.step_model import StepModel

LEAST_TOKENS = "least_tokens"
RANK_AWARE = "rank_aware"
SEEN_AFTER = 2  # reports: the second one was made after whatever was sent before the first


def policy_named(
    name: str,
    steps: StepModel | None,
    slo_s: float,
    shuffle: Callable[[list[str]], None],
) -> Placement | None:
    """Where requests with adapters go; None for ``least_tokens``, as those without."""
    if name == LEAST_TOKENS:
        return None
    if name == RANK_AWARE:
        assert steps is not None  # as ``ReplicasConfig`` has seen to
        return RankAware(steps, slo_s)
    return baselines(shuffle)[name]()


@dataclass
class _Sent:
    ticket: Ticket
    reports: int = 0  # that came since


@dataclass
class _Known:
    standing: Standing = Standing(-1, 0)
    resident: frozenset[str] = frozenset()  # its adapters, for many requests between two reports
    host: frozenset[str] = frozenset()
    heard_s: float = 0.0
    sent: list[_Sent] = field(default_factory=list)
    probes: int = 0

    @property
    def tokens(self) -> int:
        return self.standing.tokens_in_flight + sum(each.ticket.tokens for each in self.sent)

    def state(self, name: str) -> ReplicaState:
        """As reported, with what was sent since: its adapter is there or on its way."""
        standing = self.standing
        wanted = [each.ticket.wanted for each in self.sent]
        return ReplicaState(
            name,
            standing.running,
            (*standing.queued, *((each.prompt_tokens, each.rank) for each in wanted)),
            self.resident.union(each.adapter for each in wanted),
            self.host,
            standing.most,
        )


class ReplicaOrder:
    """Goes by what replicas last reported, and by what was sent to each since.

    A report is seen a while after it was made; without counting what was sent meanwhile, all that
    comes in between would go to the one that was idle, and requests of one adapter to several.
    ``policy`` places requests with adapters, on replicas of which something was heard in the last
    ``stale_s``: the others come after them. Everything else goes by tokens in flight.
    """

    def __init__(
        self, policy: Placement | None, clock: Callable[[], float], stale_s: float
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._stale_s = stale_s
        self._known: dict[str, _Known] = {}

    def report(self, replica: str, standing: Standing) -> None:
        """Take a replica's report; one that is known already changes nothing."""
        known = self._of(replica)
        if known.standing.number == standing.number:
            return
        known.standing = standing
        known.resident, known.host = frozenset(standing.resident), frozenset(standing.host)
        known.heard_s = self._clock()
        for each in known.sent:
            each.reports += 1
        known.sent = [each for each in known.sent if not _has_come(each, standing)]

    def sent(self, replica: str, ticket: Ticket) -> None:
        """Count what went to ``replica``."""
        known = self._of(replica)
        known.probes += ticket.probe
        if ticket.tokens:
            known.sent.append(_Sent(ticket))

    def order(self, replicas: Sequence[str], ticket: Ticket) -> list[str]:
        """Those of ``replicas`` that will do, the best one first."""
        if ticket.replica in replicas:
            return [ticket.replica]
        if ticket.probe:
            return sorted(replicas, key=lambda name: (self._of(name).probes, name))
        left = [name for name in replicas if name not in ticket.avoid]
        left.sort(key=lambda name: (self.tokens(name), name))
        if self._policy is not None and ticket.wanted.adapter:
            placed = self._placed(self._policy, ticket.wanted, left)
            left = placed + [name for name in left if name not in placed]
        return sorted(left, key=lambda name: name in ticket.full)

    def tokens(self, replica: str) -> int:
        return self._of(replica).tokens

    def keep(self, replicas: Mapping[str, object]) -> None:
        """Forget replicas that are no more."""
        for gone in [name for name in self._known if name not in replicas]:
            del self._known[gone]

    def _placed(self, policy: Placement, wanted: Wanted, replicas: Sequence[str]) -> list[str]:
        since_s = self._clock() - self._stale_s
        known = {
            name: known
            for name in replicas
            if (known := self._of(name)).standing.number >= 0 and known.heard_s >= since_s
        }
        lengths = [length for each in known.values() if (length := each.standing.answer_tokens)]
        if lengths:
            usual = sum(lengths) / len(lengths)
            wanted = replace(wanted, answer_tokens=min(usual, wanted.answer_tokens))
        return policy.order(wanted, [each.state(name) for name, each in known.items()])

    def _of(self, replica: str) -> _Known:
        return self._known.setdefault(replica, _Known())


def _has_come(sent: _Sent, standing: Standing) -> bool:
    """Whether a report was made after this came to the replica, or else it never will."""
    ticket = sent.ticket
    return sent.reports >= SEEN_AFTER or ticket.number <= standing.seen.get(ticket.sender, 0)

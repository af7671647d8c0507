"""Who goes next: a policy's ranks, made fair, aged and steady."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from serving.scheduling.applications.counters import Counters
from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.policies.protocol import Policy

LEAST_S = 1e-3


class Place(NamedTuple):
    """A request's place in the order, the smallest first. ``ahead``: whether its tenant had more
    than its part; ``rank``: of the policy, aged; ``number``: in order of arrival."""

    ahead: bool
    rank: float
    number: int


class Order:
    """What a queue, a router's or a simulated one, asks of a policy.

    A request is passed by later ones only for so long: demands count as ``LEAST_S`` at least, and
    one that waits comes down to that within ``ageing_s`` times what it began with over ``LEAST_S``;
    from there on it goes in order of arrival.
    """

    def __init__(self, policy: Policy, config: OrderConfig) -> None:
        self._policy = policy
        self._config = config
        self._had_s: Counters[str] = Counters()

    @property
    def preempts(self) -> bool:
        """Whether one that runs ever gives way: where ranks are demands. Times are met in turn."""
        return self._policy.demands

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        """As ``Policy.tick``."""
        self._policy.tick(lives, now_s)
        if self._config.tenant_lead_s:
            self._had_s.work(dict.fromkeys(live.key.tenant for live in lives))

    def place(self, live: Live, ask: Ask, now_s: float) -> Place:
        rank = self._policy.rank(live, ask, now_s)
        if self._policy.demands:
            if self._config.ageing_s:
                rank /= 1 + max(0.0, now_s - ask.arrived_s) / self._config.ageing_s
            rank = max(rank, LEAST_S)
        return Place(self._ahead(live.key.tenant), rank, ask.number)

    def gives_way(self, running: Place, waiting: Place) -> bool:
        """Whether the one that runs has to make room for the one that waits."""
        if waiting.ahead != running.ahead:
            return running.ahead
        return waiting.rank * (1 + self._config.margin) < running.rank

    def served(self, live: Live, prompt_tokens: int, output_tokens: int, device_s: float) -> None:
        """So much more of ``live`` was computed, at such a cost."""
        self._policy.served(live, prompt_tokens, output_tokens)
        if self._config.tenant_lead_s:
            self._had_s.add(live.key.tenant, device_s)

    def _ahead(self, tenant: str) -> bool:
        lead_s = self._config.tenant_lead_s
        return bool(lead_s) and self._had_s.had(tenant) > self._had_s.least + lead_s

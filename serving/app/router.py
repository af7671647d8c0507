"""``ReplicaOrder`` as Ray Serve's request router."""

from __future__ import annotations

import random
import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serving.app.messages import Standing, Ticket
from serving.app.placement import ReplicaOrder, policy_named
from serving.lora.step_model import StepModel


class PlacementRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types here
    """Every call to an engine replica begins with a ``Ticket``."""

    def initialize_state(
        self,
        *,
        policy: str,
        steps: dict[str, Any],
        slo_s: float,
        stale_s: float,
    ) -> None:
        """Values as Ray carries them; ``steps``: of a ``StepModel``, empty where there is none."""
        model = StepModel(**steps) if steps else None
        placement = policy_named(policy, model, slo_s, random.shuffle)
        self._placement = ReplicaOrder(placement, time.monotonic, stale_s)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        for name, replica in by_name.items():
            if stats := replica.routing_stats:
                self._placement.report(name, Standing(**stats))
        self._placement.keep(by_name)
        ticket = Ticket()
        if pending_request is not None:
            ticket = pending_request.args[0]
            # Where none will do yet Serve asks again, and without this in a loop that never waits.
            pending_request.routing_context.should_backoff = True
        order = self._placement.order(list(by_name), ticket)
        # Of a pick Serve will not say that it was routed, nor of a probe that nobody answers, after
        # which it is another's turn.
        if order and (ticket.picks or ticket.probe):
            self._placement.sent(order[0], ticket)
        return [[by_name[name]] for name in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        ticket = pending_request.args[0]
        if not ticket.probe:
            self._placement.sent(replica_id.unique_id, ticket)

"""What the routers decided, kept for as long as a step needs it.

Counts of tokens per expert are summed over the step for the metrics and the router bias. The
balance and z losses of a micro-batch need router logits, which the layers hand in as they run.
Activation checkpointing runs a layer's forward twice: the second run replays the first one's
choices and is not counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from hecate.config import Config
from hecate.fssdp.dispatch import DispatchPlan


class RouterConfig(Config):
    """How the routers are kept balanced.

    ``balance_loss``: weight of the load-balancing loss (Switch, 2101.03961 eq. 4-6), with the
    counts of all ranks in one micro-batch, added for each layer; 1 at perfect balance.
    ``z_loss``: weight of the mean squared log-sum-exp of the router logits (ST-MoE, 2202.08906
    eq. 5), added for each layer. ``bias_update_rate``: step of the aux-loss-free bias
    (2408.15664), for families that carry one.
    """

    balance_loss: float = 0.01
    z_loss: float = 0.0
    bias_update_rate: float = 0.0


@dataclass
class LayerRouting:
    """One layer in one micro-batch: its counts over all ranks and its sums over local tokens."""

    counts_E: torch.Tensor | None = None
    probability_sum_E: torch.Tensor | None = None
    logsumexp_square_sum: torch.Tensor | None = None


@dataclass
class Replay:
    """One checkpointed forward: the choices it made, and the plan of its token exchange."""

    choices: list[torch.Tensor] = field(default_factory=list)
    plan: DispatchPlan | None = None
    recomputing: bool = False


class RoutingLog:
    """The routing of the current step: routers and experts write it, the step reads it."""

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.counts_YE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        self.computed_EW: dict[int, npt.NDArray[np.int64]] = {}
        """Of each layer, slots of each expert by computing rank, ``[E, W]``, as they were dealt."""
        self.global_tokens = 0
        """Tokens of the micro-batch just run, over all ranks, as its last MoE layer saw them."""
        self._routed: dict[int, list[npt.NDArray[np.int64]]] = {}
        self._layers = [LayerRouting() for _ in range(num_layers)]
        self._replays: list[Replay] = []

    def begin_step(self) -> None:
        self.counts_YE = torch.zeros_like(self.counts_YE)
        self.computed_EW = {}
        self._routed = {}

    def begin_micro_batch(self) -> None:
        self._layers = [LayerRouting() for _ in self._layers]

    @property
    def replay(self) -> Replay | None:
        """The checkpointed region that is running now, if one is."""
        return self._replays[-1] if self._replays else None

    @property
    def recomputing(self) -> bool:
        return bool(self._replays) and self._replays[-1].recomputing

    def record_logits(self, layer: int, logits_TE: torch.Tensor, *, sigmoid: bool) -> None:
        """Keep what the auxiliary losses need of one layer's router logits.

        The probability of an expert is the softmax, or where the family scores by sigmoid each
        score's share of the token's sum (DeepSeek-V3, 2412.19437 eq. 18-20).
        """
        logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
        if sigmoid:
            scores_TE = logits_TE.sigmoid()
            probabilities_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        else:
            probabilities_TE = logits_TE.softmax(-1)
        probability_sum_E = probabilities_TE.sum(0)
        square_sum = logits_TE.logsumexp(-1).square().sum()
        if not self.recomputing:
            self._layers[layer].probability_sum_E = probability_sum_E
            self._layers[layer].logsumexp_square_sum = square_sum

    def record_counts(self, layer: int, counts_E: torch.Tensor) -> None:
        """Count one layer's tokens per expert over all ranks, ``[E]`` int64, once."""
        if self.recomputing:
            return
        self._layers[layer].counts_E = counts_E
        self.counts_YE[layer, : counts_E.numel()] += counts_E

    @property
    def routed(self) -> tuple[tuple[npt.NDArray[np.int64], ...], ...]:
        """``[micro-batch][layer]`` of the step: slots of each source and expert, ``[W, E]``."""
        by_layer = (self._routed[layer] for layer in sorted(self._routed))
        return tuple(zip(*by_layer, strict=True))

    def record_routed(self, layer: int, counts_WE: npt.NDArray[np.int64]) -> None:
        """Keep what the routers of all ranks chose in one layer and micro-batch of a step."""
        self._routed.setdefault(layer, []).append(counts_WE)

    def record_computed(self, layer: int, slots_EW: npt.NDArray[np.int64]) -> None:
        """Count the slots that each rank computes of one layer, as often as they are dealt."""
        self.computed_EW[layer] = self.computed_EW.get(layer, 0) + slots_EW

    def auxiliary_loss(self, config: RouterConfig, *, global_tokens: int) -> torch.Tensor:
        """This rank's share of the weighted auxiliary losses of the micro-batch just run.

        Summed over ranks it is ``balance_loss * E * sum_e f_e P_e + z_loss * mean(lse^2)``,
        added over layers, with ``f_e`` the share of all slots and ``P_e`` the mean probability
        over all ``global_tokens`` tokens of the micro-batch.
        """
        total = torch.zeros((), device=self.counts_YE.device)
        for routing in self._layers:
            if config.balance_loss:
                assert routing.counts_E is not None and routing.probability_sum_E is not None
                probability_sum_E = routing.probability_sum_E
                counts_E = routing.counts_E.to(probability_sum_E.device, probability_sum_E.dtype)
                share_E = counts_E / counts_E.sum()
                balance = share_E.numel() * (share_E * probability_sum_E).sum() / global_tokens
                total = total + config.balance_loss * balance
            if config.z_loss:
                assert routing.logsumexp_square_sum is not None
                total = total + config.z_loss * routing.logsumexp_square_sum / global_tokens
        return total

    def checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """``context_fn`` of ``torch.utils.checkpoint``: record the choices, then replay them."""
        replay = Replay()
        return _Recording(self, replay), _Replaying(self, replay)

    def _enter(self, replay: Replay, *, recomputing: bool) -> None:
        replay.recomputing = recomputing
        self._replays.append(replay)

    def _leave(self) -> None:
        self._replays.pop()


_TOPK: tuple[Callable[..., Any], ...] = (torch.topk, torch.Tensor.topk)


class _Choices(TorchFunctionMode):
    """Sees every ``topk`` of a checkpointed region; the routers choose by nothing else."""

    recomputing = False

    def __init__(self, log: RoutingLog, replay: Replay) -> None:
        super().__init__()
        self._log, self._replay = log, replay

    def __enter__(self) -> Any:
        self._log._enter(self._replay, recomputing=self.recomputing)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._log._leave()

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _TOPK:
            return func(*args, **kwargs)
        source, *rest = args
        chosen = self._choose(source, *rest, **kwargs)
        dim = rest[1] if len(rest) > 1 else kwargs.get("dim", -1)
        taken = _Take.apply(source, dim, chosen)  # type: ignore[no-untyped-call]
        return torch.return_types.topk((taken, chosen))

    def _choose(self, source: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError


class _Recording(_Choices):
    def _choose(self, source: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.no_grad():
            chosen: torch.Tensor = torch.topk(source, *args, **kwargs).indices
        self._replay.choices.append(chosen)
        return chosen


class _Replaying(_Choices):
    recomputing = True

    def __enter__(self) -> Any:
        self._next = iter(self._replay.choices)
        return super().__enter__()

    def _choose(self, source: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return next(self._next)


class _Take(torch.autograd.Function):
    """``source.gather(dim, chosen)``, which saves the same tensors in both runs of a region."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, dim: int, chosen: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(chosen)
        ctx.dim, ctx.shape = dim, source.shape
        return source.gather(dim, chosen)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (chosen,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).scatter_(ctx.dim, chosen, grad), None, None

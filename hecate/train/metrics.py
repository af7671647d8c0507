"""The figures of a training run, computed from counts and times that others took. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from collectives.placement import Placement
from hecate.models.families import MoELayer
from hecate.models.lora import is_adapter

PHASES = (
    "data",
    "forward",
    "gather",
    "all_to_all",
    "experts",
    "backward",
    "reduce",
    "optimizer",
)


def perplexity(loss: float) -> float:
    """``exp`` of a loss in nats per token; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss: float, *, predicted_tokens: int, text_bytes: int) -> float:
    """The code length of the text: ``loss`` nats for each predicted token, over its UTF-8 bytes.

    Unlike perplexity it does not depend on the tokenizer, so it compares with a compressor:
    ``8 * compressed_bytes / text_bytes``.
    """
    if text_bytes <= 0:
        raise ValueError(f"bits per byte of {text_bytes} bytes; expected at least 1")
    return loss * predicted_tokens / (math.log(2) * text_bytes)


@dataclass(frozen=True)
class ModelFlops:
    """What a model's forward and backward passes cost, in floating-point operations.

    ``dense_parameters`` counts every parameter that each token passes through: all but the experts
    and the input embedding (a lookup), with a tied embedding counted once, as the output head.
    ``expert_parameters`` is one expert of each MoE layer. ``attention_width`` sums heads x (query
    head dim + value head dim) over the layers.
    """

    dense_parameters: int
    expert_parameters: tuple[int, ...]
    attention_width: int
    frozen: bool = False

    def of(self, *, tokens: int, assignments_Y: Sequence[int], attended_keys: int) -> float:
        """The operations of one forward and backward pass over ``tokens`` tokens:

            6 * dense_parameters * tokens
          + 6 * sum over MoE layers of expert_parameters * assignments
          + 6 * attention_width * attended_keys

        A weight costs a multiplication and an addition in the forward pass and twice that in the
        backward pass, hence 6; of a frozen weight there is no gradient, hence 4 (adapters count as
        nothing). ``assignments_Y`` is how many (token, expert) pairs the router made
        in each MoE layer (tokens x top-k when dropless), so experts count as often as they ran.
        ``attended_keys`` is the sum over tokens of the keys each attends to in its own document
        (see ``attended_keys``); scores and weighted values cost 2 each, three times over. Sliding
        windows count as full attention. Recomputation (activation checkpointing), softmax, norms'
        elementwise work, the optimizer and communication count as nothing: this is the model's
        work, not the machine's.
        """
        if len(assignments_Y) != len(self.expert_parameters):
            raise ValueError(
                f"assignments of {len(assignments_Y)} layers; "
                f"expected {len(self.expert_parameters)}, one for each MoE layer"
            )
        dense = self._per_weight * self.dense_parameters * tokens
        attention = 6.0 * self.attention_width * attended_keys
        return dense + attention + self.of_experts(assignments_Y)

    def of_experts(self, assignments_Y: Sequence[int]) -> float:
        """The experts' part of it."""
        pairs = zip(self.expert_parameters, assignments_Y, strict=True)
        slots = sum(parameters * int(assignments) for parameters, assignments in pairs)
        return self._per_weight * slots

    @property
    def _per_weight(self) -> float:
        return 4.0 if self.frozen else 6.0


def model_flops(model: nn.Module, layers: Sequence[MoELayer]) -> ModelFlops:
    """The costs of a transformers causal language model; its parameters may be meta or sharded."""
    in_experts = tuple(f"{layer.name}." for layer in layers)
    dense = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith(in_experts) and not is_adapter(name)
    )
    whole: Any = model
    embedding = whole.get_input_embeddings()
    head = whole.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        dense -= embedding.weight.numel()
    return ModelFlops(
        dense_parameters=dense,
        expert_parameters=tuple(layer.layout.numel for layer in layers),
        attention_width=_attention_width(whole.config.get_text_config()),
        frozen=not embedding.weight.requires_grad,
    )


def _attention_width(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:
        return 0
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Multi-head latent attention names its two widths apart; everyone else has one.
    query_dim = getattr(config, "qk_head_dim", None) or head_dim
    value_dim = getattr(config, "v_head_dim", None) or head_dim
    return int(config.num_hidden_layers * heads * (query_dim + value_dim))


def attended_keys(document_lengths: Iterable[int]) -> int:
    """How many keys the tokens of packed documents attend to: a document of n has n(n+1)/2."""
    return sum(length * (length + 1) // 2 for length in document_lengths)


def mfu(flops: float, *, elapsed_s: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: ``flops / (elapsed_s * peak_flops)``.

    ``flops`` is the work of all ranks in ``elapsed_s`` (``ModelFlops.of``). ``peak_flops`` is what
    all ranks together reach in a large matrix multiplication of the training dtype, measured
    (``hecate.train.peak``), not taken from a data sheet: the figure says how far the step is from
    the machine's own best, whatever the machine.
    """
    if elapsed_s <= 0 or peak_flops <= 0:
        return 0.0
    return flops / (elapsed_s * peak_flops)


@dataclass(frozen=True)
class LayerLoad:
    """How evenly one MoE layer's assignments fell on its experts and on the ranks that own them.

    Each ``max_over_mean`` is 1 when balanced (or when there are no tokens) and at most the number
    of experts or ranks.
    """

    layer: int
    tokens_per_expert: tuple[int, ...]
    tokens_per_rank: tuple[float, ...]
    experts_max_over_mean: float
    ranks_max_over_mean: float
    dead_experts: tuple[int, ...]


def load_statistics(
    counts_YE: torch.Tensor, placements: Sequence[Placement]
) -> tuple[LayerLoad, ...]:
    """The load of each MoE layer.

    ``counts_YE``: [Y, E] int64, CPU, assignments summed over all ranks; a layer with fewer experts
    than E has its counts first. ``placements`` has one entry for each layer. An expert held by
    several ranks burdens each of them equally.
    """
    if counts_YE.dim() != 2 or counts_YE.shape[0] != len(placements):
        raise ValueError(
            f"counts of shape {tuple(counts_YE.shape)} for {len(placements)} placements; "
            "expected [layers, experts] and one placement for each layer"
        )
    loads = []
    for layer, (row, placement) in enumerate(zip(counts_YE.tolist(), placements, strict=True)):
        tokens = tuple(row[: placement.num_chunks])
        ranks = [0.0] * placement.world_size
        for count, holders in zip(tokens, placement.holders, strict=True):
            for rank in holders:
                ranks[rank] += count / len(holders)
        loads.append(
            LayerLoad(
                layer=layer,
                tokens_per_expert=tokens,
                tokens_per_rank=tuple(ranks),
                experts_max_over_mean=max_over_mean(tokens),
                ranks_max_over_mean=max_over_mean(ranks),
                dead_experts=tuple(expert for expert, count in enumerate(tokens) if not count),
            )
        )
    return tuple(loads)


def max_over_mean(values: Sequence[float]) -> float:
    """How far the largest is above the mean; 1 where all are alike, or nothing is there."""
    total = sum(values)
    return max(values) * len(values) / total if total else 1.0


class PhaseClock:
    """Seconds of a training step by phase; the phases are disjoint and never count a second twice.

    A phase opened inside another, and seconds given to ``add`` while one is open, are taken off the
    outer one: ``forward`` is the forward pass without the token exchange and the experts inside it.
    ``clock`` returns seconds. On a device that runs asynchronously, host time in a phase is the
    time until its work was launched, unless ``clock`` waits for the device. ``entered`` hears the
    name of each phase as it begins.
    """

    def __init__(
        self, clock: Callable[[], float], entered: Callable[[str], object] = lambda name: None
    ) -> None:
        self._clock, self._entered = clock, entered
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._inside: list[float] = []  # seconds given to inner phases, for each open phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to ``name``."""
        self._known(name)
        self._entered(name)
        started = self._clock()
        self._inside.append(0.0)
        try:
            yield
        finally:
            elapsed = self._clock() - started
            self._seconds[name] += elapsed - self._inside.pop()
            if self._inside:
                self._inside[-1] += elapsed

    def add(self, name: str, seconds: float) -> None:
        """Charge ``seconds`` that somebody else measured to ``name``."""
        self._known(name)
        self._seconds[name] += seconds
        if self._inside:
            self._inside[-1] += seconds

    def take(self) -> dict[str, float]:
        """The seconds of every phase since the last ``take``; only between phases."""
        assert not self._inside, "take() inside an open phase would split it"
        taken = self._seconds
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return taken

    @staticmethod
    def _known(name: str) -> None:
        if name not in PHASES:
            raise ValueError(f"unknown phase {name!r}; expected one of {', '.join(PHASES)}")

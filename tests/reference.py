"""The independent reference of the parity tests: one process, plain transformers, plain AdamW.

It shares no code with the trainer but the initial values: transformers' own eager experts and
attention, whole logits, ``torch.optim.AdamW`` without fusing, ``clip_grad_norm_``, and the masks of
packed documents and the auxiliary losses written out, the latter from the router logits that
transformers records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from hecate.models.build import initial_dense, initial_expert, meta_model
from hecate.models.families import find_moe_layers

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class WideFloats(TorchFunctionMode):
    """Let fp64 models stay fp64 where transformers casts to fp32 (norms, softmax, rotary).

    Otherwise two orders of summation, equal to 1e-16, may round to different fp32 numbers there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.backward:  # layers that are recomputed run inside it
            with WideFloats():
                return _engine_run_backward(
                    (args[0],),
                    (torch.ones_like(args[0]),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        wide = args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if wide and func is torch.Tensor.float:
            return args[0]
        if wide and func in (torch.Tensor.to, torch.Tensor.type):
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if wide and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@dataclass
class Outcome:
    """What both sides report by step, the first step's gradients, the last parameters.

    ``counts``: slots of each layer and expert.
    """

    losses: list[float] = field(default_factory=list)
    auxiliary: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    counts: list[list[list[int]]] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)


def reference_model(config: Any, seed: int, dtype: torch.dtype) -> Any:
    """Plain transformers with the trainer's initial values."""
    meta = meta_model(config)
    layers = find_moe_layers(meta)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in initial_dense(meta, layers, seed):
            own[name].copy_(value)
        for layer in layers:
            for expert_id in range(layer.num_experts):
                for name, value in initial_expert(meta, layer, expert_id, seed).items():
                    own[f"{layer.name}.{name}"][expert_id].copy_(value)
    return model.to(dtype).train()


class ReferenceMuon:
    """Muon written out, a matrix at a time; what it takes is taken from ``adamw``."""

    def __init__(self, model: Any, adamw: torch.optim.AdamW) -> None:
        self._adamw = adamw
        self._matrices = [
            (name, p)
            for name, p in model.named_parameters()
            if p.ndim == 2 and not any(w in name for w in ("embed", "lm_head", "mlp.gate."))
        ]
        self._experts = [(n, p) for n, p in model.named_parameters() if p.ndim == 3]
        taken = {id(p) for _, p in (*self._matrices, *self._experts)}
        for group in adamw.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in taken]
        self._momentum: dict[str, torch.Tensor] = {}

    def zero_grad(self) -> None:
        self._adamw.zero_grad()
        for _, parameter in (*self._matrices, *self._experts):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self._adamw.step()
        for name, parameter in self._matrices:
            self._one(name, parameter.detach(), parameter.grad)
        for name, parameter in self._experts:
            for number, expert in enumerate(parameter):
                rows = expert.shape[0]
                halves = [slice(0, rows // 2), slice(rows // 2, rows)]
                for part in halves if "gate_up" in name else [slice(0, rows)]:
                    self._one(
                        f"{name}{number}{part}", expert.detach()[part], parameter.grad[number][part]
                    )

    def _one(self, name: str, weight: torch.Tensor, grad: torch.Tensor) -> None:
        rate, decay = self._adamw.param_groups[0]["lr"], self._adamw.param_groups[0]["weight_decay"]
        momentum = 0.95 * self._momentum.get(name, torch.zeros_like(grad)) + 0.05 * grad
        self._momentum[name] = momentum
        x = 0.95 * momentum + 0.05 * grad
        x = x / max(float(x.square().sum().sqrt()), 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        weight *= 1 - rate * decay
        weight -= rate * 0.2 * max(weight.shape) ** 0.5 * x


def train_reference(
    config: Any,
    steps: Sequence[Sequence[Batch]],
    *,
    seed: int,
    dtype: torch.dtype,
    learning_rate: float,
    weight_decay: float,
    clip_norm: float,
    balance_loss: float = 0.0,
    z_loss: float = 0.0,
    bias_update_rate: float = 0.0,
    sigmoid: bool = False,
    muon: bool = False,
) -> Outcome:
    """Train on ``steps``, each a list of global micro-batches (ids, labels, positions)."""
    model = reference_model(config, seed, dtype)
    vectors = [p for p in model.parameters() if p.ndim < 2]
    stacked = {id(p) for n, p in model.named_parameters() if ".experts." in n and "shared" not in n}
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in vectors if id(p) not in stacked]
    optimizer: Any = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
        fused=False,
    )
    if muon:
        optimizer = ReferenceMuon(model, optimizer)
    outcome = Outcome()
    experts = max(layer.num_experts for layer in find_moe_layers(model))
    with _chosen_experts(model) as chosen:
        for number, micro_batches in enumerate(steps):
            labels = sum(int((labels != -100).sum()) for _, labels, _ in micro_batches)
            loss_sum, aux_sum, counts = 0.0, 0.0, []
            for ids, targets, positions in micro_batches:
                chosen.clear()
                output = model.base_model(
                    input_ids=ids,
                    position_ids=positions,
                    attention_mask=_document_masks(model.config, positions, dtype),
                    use_cache=False,
                    output_router_logits=bool(balance_loss or z_loss),
                )
                logits = model.lm_head(output.last_hidden_state).to(dtype)
                cross_entropy = F.cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100
                )
                auxiliary = torch.zeros((), dtype=dtype)
                if balance_loss or z_loss:
                    auxiliary = _auxiliary(
                        output.router_logits, chosen, balance_loss, z_loss, sigmoid
                    ) / len(micro_batches)
                (cross_entropy / labels + auxiliary).backward()
                loss_sum += float(cross_entropy)
                aux_sum += float(auxiliary)
                counts.append(
                    [torch.bincount(index.flatten(), minlength=experts) for index in chosen]
                )
            if number == 0:
                outcome.gradients = {
                    n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
                }
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if bias_update_rate:
                _update_bias(model, counts, bias_update_rate)
            outcome.losses.append(loss_sum / labels)
            outcome.auxiliary.append(aux_sum)
            outcome.norms.append(float(norm))
            outcome.counts.append([sum(layer).tolist() for layer in zip(*counts, strict=True)])
    names = dict(model.named_parameters()) | dict(model.named_buffers())  # a tied one once
    outcome.parameters = {
        n: t.detach().clone() for n, t in model.state_dict().items() if n in names
    }
    return outcome


@contextlib.contextmanager
def _chosen_experts(model: Any) -> Iterator[list[torch.Tensor]]:
    """The expert ids that each MoE layer was given, in layer order."""
    chosen: list[torch.Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: chosen.append(inputs[1]))
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    yield chosen
    for handle in handles:
        handle.remove()


def _document_masks(config: Any, positions: torch.Tensor, dtype: torch.dtype) -> Any:
    """Masks written out: a token sees its own document, up to itself and within the window.

    Not every family would find the documents in ``position_ids``; gpt-oss takes no notice of them.
    """
    document = (positions == 0).cumsum(-1)
    place = torch.arange(positions.shape[1])
    back = place[:, None] - place
    seen = (document[:, :, None] == document[:, None, :]) & (back >= 0)
    window = getattr(config, "sliding_window", None) or len(place)
    masks = {
        name: torch.zeros(allowed.shape, dtype=dtype)
        .masked_fill(~allowed, torch.finfo(dtype).min)
        .unsqueeze(1)
        for name, allowed in {
            "full_attention": seen,
            "sliding_attention": seen & (back < window),
        }.items()
    }
    return masks if hasattr(config, "layer_types") else masks["sliding_attention"]


def _auxiliary(
    router_logits: Sequence[torch.Tensor],
    chosen: Sequence[torch.Tensor],
    balance_loss: float,
    z_loss: float,
    sigmoid: bool,
) -> torch.Tensor:
    total = torch.zeros((), dtype=router_logits[0].dtype)
    for logits, index in zip(router_logits, chosen, strict=True):
        logits = logits.reshape(-1, logits.shape[-1])
        experts = logits.shape[-1]
        scores = logits.sigmoid() if sigmoid else logits.exp()
        mean_probability = (scores / scores.sum(1, keepdim=True)).mean(0)
        share = F.one_hot(index.flatten(), experts).to(logits.dtype).mean(0)
        total = total + balance_loss * experts * (share * mean_probability).sum()
        total = total + z_loss * (logits.exp().sum(1).log() ** 2).mean()
    return total


def _update_bias(model: Any, counts: list[list[torch.Tensor]], rate: float) -> None:
    biases = [b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    for layer, bias in enumerate(biases):
        load = torch.zeros(bias.numel())
        for micro_batch in counts:
            load[: micro_batch[layer].numel()] += micro_batch[layer]
        for expert in range(bias.numel()):
            if load[expert] < load.mean():
                bias[expert] += rate
            elif load[expert] > load.mean():
                bias[expert] -= rate

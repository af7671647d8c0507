"""Documents packed into one row do not see one another, in any family and on any attention path.

The other document is replaced, every token of it; this one's bits must stay as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from toy_models import FAMILIES, toy_config

from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.models.attention import PACKED
from hecate.models.build import ModelConfig
from hecate.models.loss import IGNORED
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig, TrainConfig

FIRST, SECOND = 21, 19  # tokens; gpt-oss's window of 16 reaches back from one into the other

# What "auto" comes to, and what else a family can run on.
PATHS = [
    *((family, path) for family in FAMILIES if family != "gpt_oss" for path in ("auto", "sdpa")),
    ("gpt_oss", "auto"),
    ("qwen3_moe", "packed"),
    ("qwen3_moe", "eager"),
    ("deepseek_v3", "eager"),
]
IMPLEMENTATIONS = {"auto": PACKED, "packed": PACKED, "sdpa": "sdpa", "eager": "eager"}


@pytest.fixture(scope="module")
def ctx() -> Iterator[ParallelContext]:
    with open_mesh(MeshConfig(device="cpu"), Rendezvous.from_environment({})) as context:
        yield context


def build(ctx: ParallelContext, family: str, attention: str, **sizes: object) -> Trainer:
    fields = toy_config(family, initializer_range=0.2, **sizes).to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        fields.pop(key, None)
    config = RunConfig(
        name="packing",
        seed=1,
        model=ModelConfig(family=family, sizes=fields, attention=attention),
        train=TrainConfig(steps=1, batch_sequences=1),
        data={"sequence_tokens": FIRST + SECOND},
    )
    return build_trainer(config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext())


@pytest.fixture(scope="module", params=PATHS, ids="-".join)
def trainer(request: pytest.FixtureRequest, ctx: ParallelContext) -> Trainer:
    family, attention = request.param
    trainer = build(ctx, family, attention)
    expected = "eager" if family == "gpt_oss" else IMPLEMENTATIONS[attention]
    assert trainer.model.config._attn_implementation == expected
    return trainer


@pytest.fixture(scope="module", params=PATHS, ids="-".join)
def every_expert(request: pytest.FixtureRequest, ctx: ParallelContext) -> Trainer:
    """The family with each token routed to all of its experts."""
    family, attention = request.param
    config = toy_config(family)
    sizes: dict[str, object] = {"num_experts_per_tok": getattr(config, "num_experts", 0)}
    if family == "deepseek_v3":
        sizes = {"num_experts_per_tok": config.n_routed_experts, "n_group": 1, "topk_group": 1}
    return build(ctx, family, attention, **sizes)


def tokens(seed: int, count: int) -> torch.Tensor:
    return torch.randint(2, 128, (count,), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Seen:
    """What one row gave: logits by document, and the summed loss of the last document's labels."""

    logits: tuple[torch.Tensor, ...]
    last_loss: torch.Tensor


def run(trainer: Trainer, *documents: torch.Tensor, rows: int = 1) -> Seen:
    """One forward pass of training over ``rows`` equal rows that hold ``documents``."""
    lengths = tuple(len(document) for document in documents)
    ids = torch.cat(documents)[None].repeat(rows, 1)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].repeat(rows, 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, sum(lengths[:-1]) : -1] = ids[:, sum(lengths[:-1]) + 1 :]
    kept: list[torch.Tensor] = []
    head = trainer.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda *args: kept.append(args[2]))
    fused = trainer.root.fused
    assert fused
    with torch.no_grad():
        loss = trainer.root(ids, labels, positions, lengths * rows)
        trainer.root.fused = False
        trainer.root(ids, labels, positions, lengths * rows)
    trainer.root.fused = fused
    handle.remove()
    (logits,) = kept
    return Seen(logits[-1].split(lengths), loss)


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def test_a_document_keeps_its_bits_whatever_shares_its_row(every_expert):
    """All experts for every token: no product changes its shape, so no rounding may move."""
    a, b = tokens(1, FIRST), tokens(3, SECOND)
    other = (a + 1 + torch.arange(FIRST) % 100) % 126 + 2
    assert bool((other != a).all())
    before, after = run(every_expert, a, b), run(every_expert, other, b)
    assert largest(before.logits[0] - after.logits[0]) > 0.1
    assert torch.equal(before.logits[1], after.logits[1])
    assert torch.equal(before.last_loss, after.last_loss)


def test_the_first_document_keeps_its_bits_too(every_expert):
    a, b, other = tokens(1, FIRST), tokens(3, SECOND), tokens(4, SECOND)
    before, after = run(every_expert, a, b), run(every_expert, a, other)
    assert torch.equal(before.logits[0], after.logits[0])
    assert largest(before.logits[1] - after.logits[1]) > 0.1


def test_a_document_computes_what_it_computes_alone(trainer):
    """Its own routing, its own positions: only the rounding of longer products differs."""
    a, b = tokens(1, FIRST), tokens(3, SECOND)
    packed, alone = run(trainer, a, b), run(trainer, b)
    torch.testing.assert_close(packed.logits[1], alone.logits[0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(packed.last_loss, alone.last_loss, rtol=1e-5, atol=0)
    first = run(trainer, a)
    torch.testing.assert_close(packed.logits[0], first.logits[0], rtol=1e-4, atol=2e-5)


def test_documents_are_kept_apart_wherever_they_are_cut(trainer):
    b = tokens(3, SECOND)
    alone = run(trainer, b)
    cuts = [(tokens(5, 1),) * 3, (tokens(6, 2), tokens(7, 19)), (b, b[:2])]
    for before in cuts:
        packed = run(trainer, *before, b)
        torch.testing.assert_close(packed.logits[-1], alone.logits[0], rtol=1e-4, atol=2e-5)


def test_rows_are_kept_apart(trainer):
    a, b = tokens(1, FIRST), tokens(3, SECOND)
    one, three = run(trainer, a, b), run(trainer, a, b, rows=3)
    for logits, expected in zip(three.logits, one.logits, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5)


def test_a_document_still_sees_its_own_past(trainer):
    b = tokens(3, SECOND)
    changed = b.clone()
    changed[0] = (b[0] + 1) % 126 + 2
    before, after = run(trainer, b), run(trainer, changed)
    moved = (before.logits[0] - after.logits[0]).abs().amax(1)
    assert float(moved[1:].min()) > 1e-4
    changed = b.clone()
    changed[-1] = (b[-1] + 1) % 126 + 2
    after = run(trainer, changed)
    moved = (before.logits[0] - after.logits[0]).abs().amax(1)
    assert float(moved[:-1].max()) < 2e-5

"""The loss on held-out files: one pass, every token once, on any number of ranks."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from hecate.checkpoint.architecture import saved_architecture
from hecate.checkpoint.base import require_same_base
from hecate.checkpoint.store import CheckpointStore
from hecate.config import load_config
from hecate.data import (
    HeldOutFacts,
    MicroBatch,
    TokenizedCorpus,
    held_out_batches,
    load_corpus,
    open_tokens,
)
from hecate.data.tokenizer import load_tokenizer, num_token_ids
from hecate.errors import CheckpointError
from hecate.mesh import ParallelContext, Rendezvous, naming, open_mesh, sum_over
from hecate.models.loss import IGNORED
from hecate.train.build import Trainer, build_trainer, choose_loss
from hecate.train.config import RunConfig
from hecate.train.dense import DenseConfig
from hecate.train.metrics import PhaseClock, bits_per_byte, perplexity
from hecate.train.state import load_average, model_state


def mean_loss(trainer: Trainer, batches: Iterable[MicroBatch], ctx: ParallelContext) -> float:
    """Mean cross-entropy in nats per label over all ranks; every rank brings as many batches."""
    trainer.model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad(), naming("a collective of the evaluation", ctx.rank):
        for batch in batches:
            trainer.experts.log.begin_micro_batch()
            loss = trainer.root(
                batch.input_ids_BS.to(ctx.device),
                batch.labels_BS.to(ctx.device),
                batch.position_ids_BS.to(ctx.device),
                batch.document_lengths,
            )
            sums += torch.tensor([float(loss), float((batch.labels_BS != IGNORED).sum())])
        total, labels = sum_over(ctx.groups.control, sums).tolist()
    trainer.experts.log.begin_micro_batch()
    trainer.backend.release()
    trainer.model.train()
    return float(total / max(1.0, labels))


def evaluation(
    trainer: Trainer,
    corpus: TokenizedCorpus,
    config: RunConfig,
    ctx: ParallelContext,
    *,
    sequences: int = 0,
) -> dict[str, float]:
    """The held-out metrics: ``loss`` (nats per token), ``perplexity``, ``bits_per_byte``.

    ``sequences`` limits the pass (0 takes all).
    """
    rows = max(config.train.batch_sequences // config.train.accumulation, ctx.world_size)
    batches = held_out_batches(
        corpus.held_out,
        sequence_tokens=config.data.sequence_tokens,
        batch_sequences=rows,
        rank=ctx.rank,
        world_size=ctx.world_size,
        too_long=config.data.too_long,
    )
    if sequences:
        batches = itertools.islice(batches, math.ceil(sequences / rows))
    loss = mean_loss(trainer, batches, ctx)
    return quality(loss, corpus.facts, trainer.model.config.vocab_size)


def quality(loss: float, facts: HeldOutFacts, vocab_size: int) -> dict[str, float]:
    """A held-out loss beside what it is worth.

    A text's first token is predicted from nothing; bits per byte charge it the logarithm of the
    vocabulary's size, so that the figure is a code length of the whole text, as xz's is. Of
    conversations it is the code length of what the assistant says, given the rest.
    """
    unpredicted = facts.tokens - facts.predicted_tokens
    nats = loss * facts.predicted_tokens + math.log(vocab_size) * unpredicted
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(
            nats / facts.tokens, predicted_tokens=facts.tokens, text_bytes=facts.bytes
        ),
    }


def yardsticks(facts: HeldOutFacts) -> dict[str, float]:
    """What the held-out text costs without a model: to print beside ``quality``."""
    return {
        "unigram_entropy": facts.unigram_entropy_nats,
        "xz_bits_per_byte": facts.xz_bits_per_byte,
    }


def load_run(folder: Path) -> RunConfig:
    """The configuration that a run was started with. Raises ``CheckpointError`` if it is no run."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not the folder of a run",
            got="no config.yaml in it" if folder.is_dir() else "no such folder",
            expected="a folder that hecate train made, such as runs/demo",
            fix="pass the run's folder",
        )
    return load_config(RunConfig, path).value


def read_config(config: RunConfig) -> RunConfig:
    """``config`` for a model that is only read: a checkpoint is the same under every backend."""
    return config.model_copy(update={"dense": DenseConfig()})


def evaluate_run(run_folder: Path, *, averaged: bool = False) -> dict[str, float]:
    """Evaluate the newest checkpoint of a run on all its held-out text; any number of ranks.

    ``averaged``: its running average of weights. Returns ``quality`` and ``yardsticks``. Raises
    ``CheckpointError`` for a run without a checkpoint, or without an average.
    """
    config = read_config(load_run(run_folder))
    with open_mesh(config.mesh, Rendezvous.from_environment(os.environ)) as ctx:
        store = CheckpointStore(
            run_folder / "checkpoints", group=ctx.groups.checkpoint, rank=ctx.rank, keep=0
        )
        newest = store.newest()
        if newest is None:
            raise CheckpointError(
                f"{run_folder} holds no checkpoint yet",
                expected="a folder such as checkpoints/step-00000100",
                fix="train it for at least checkpoint.every steps, or to its end",
            )
        tokenizer = load_tokenizer(run_folder / "tokenizer")
        corpus = open_tokens(load_corpus(config.data), tokenizer, config.data)
        meta = store.read_meta(newest)
        if config.lora.active:
            require_same_base(newest, meta, Path(config.model.path).expanduser())
        clock = PhaseClock(lambda: 0.0)
        trainer = build_trainer(
            config,
            ctx,
            vocab_size=num_token_ids(tokenizer),
            phase=clock.phase,
            fill=False,
            architecture=saved_architecture(newest, meta),
        )
        if averaged:
            load_average(store, newest, trainer, meta)
        else:
            store.load(newest, model_state(trainer))
            trainer.experts.refresh()
        choose_loss(trainer.root, trainer.backend, ctx)
        return evaluation(trainer, corpus, config, ctx) | yardsticks(corpus.facts)

"""What a run trains on: its tokenizer, its tokens, and the stream of this rank's micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from hecate.checkpoint.agreement import together
from hecate.data import (
    Fit,
    Progress,
    TokenizedCorpus,
    TrainStream,
    check_vocabulary,
    fit_rows,
    load_corpus,
    open_tokens,
    prepare_tokenizer,
    progress_bars,
    quiet,
)
from hecate.data.tokenizer import num_token_ids
from hecate.mesh import ParallelContext
from hecate.models.build import hf_config
from hecate.train.config import RunConfig
from hecate.train.notices import Say, tell_how_full, tell_what_is_cut


@dataclass(frozen=True)
class Inputs:
    """A run's tokenizer and tokens, the same on every rank."""

    tokenizer: PreTrainedTokenizerBase
    corpus: TokenizedCorpus

    @property
    def vocab_size(self) -> int:
        return num_token_ids(self.tokenizer)

    def stream(self, config: RunConfig, ctx: ParallelContext, say: Say) -> TrainStream:
        """The micro-batches of this rank, from the first on."""
        stream = TrainStream(
            self.corpus.train,
            sequence_tokens=config.data.sequence_tokens,
            batch_sequences=config.train.batch_sequences,
            accumulation=config.train.accumulation,
            seed=config.seed,
            rank=ctx.rank,
            world_size=ctx.world_size,
            too_long=config.data.too_long,
        )
        if config.data.kind == "chat":
            tell_how_full(say, config, stream)
        return stream


def read_inputs(
    config: RunConfig, ctx: ParallelContext, folder: Path, console: Console, say: Say
) -> Inputs:
    """Read them, or make them and keep them in the run's ``folder`` and the data cache.

    Collective: every rank ends alike if one of them cannot.
    """
    data = config.data
    if config.model.path and not data.tokenizer.path and _has_tokenizer(config.model.path):
        update = {"path": config.model.path}
        data = data.model_copy(update={"tokenizer": data.tokenizer.model_copy(update=update)})
    with _progress(console, shown=ctx.rank == 0) as progress:
        with together(ctx.groups.control, "reading the corpus"):
            corpus = load_corpus(data)
            tokenizer = prepare_tokenizer(data, corpus, folder / "tokenizer", progress=progress)
            check_vocabulary(
                tokenizer, hf_config(config.model, vocab_size=num_token_ids(tokenizer)).vocab_size
            )
            tokens = open_tokens(corpus, tokenizer, data, progress=progress)
            fits: Sequence[Fit] = [
                fit_rows(split, data.sequence_tokens, data.too_long)
                for split in (tokens.train, tokens.held_out)
            ]
    tell_what_is_cut(say, config, fits)
    return Inputs(tokenizer, tokens)


def _has_tokenizer(path: str) -> bool:
    return Path(path).expanduser().joinpath("tokenizer_config.json").is_file()


@contextmanager
def _progress(console: Console, *, shown: bool) -> Iterator[Progress]:
    if not shown:
        yield quiet
        return
    with progress_bars(console) as progress:
        yield progress

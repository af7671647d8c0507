"""What a run says to people beside its figures: what of the data takes part, how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from hecate.data import Fit, TrainStream
from hecate.train.config import RunConfig

Say = Callable[[str], object]


def silent(text: str) -> None:
    """What all ranks but the first say."""


def saying(console: Console) -> Say:
    """Print lines as they are: no colours, no wrapping."""
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def tell_what_is_cut(say: Say, config: RunConfig, fits: Sequence[Fit]) -> None:
    """Say how many conversations do not take part whole."""
    dropped, cut = sum(fit.dropped for fit in fits), sum(fit.truncated for fit in fits)
    if dropped or cut:
        total = dropped + sum(len(fit.documents) for fit in fits)
        say(
            f"of {total:,} conversations, {dropped + cut:,} are longer than "
            f"data.sequence_tokens = {config.data.sequence_tokens}: {dropped:,} left out, "
            f"{cut:,} cut to it"
        )


def tell_how_full(say: Say, config: RunConfig, stream: TrainStream) -> None:
    """Say how much of the rows conversations fill."""
    say(
        f"conversations fill {stream.sequences_per_epoch:,} sequences of "
        f"{config.data.sequence_tokens} tokens to {stream.fullness:.0%}"
    )


def tell_result(say: Say, folder: Path, figures: Mapping[str, float]) -> None:
    """Say how a whole run did. ``figures``: the held-out metrics and their yardsticks."""
    say(
        f"held-out loss {figures['loss']:.3f} nats per token "
        f"(unigram entropy {figures['unigram_entropy']:.3f}, "
        f"{figures['unigram_entropy'] - figures['loss']:.3f} below it)\n"
        f"held-out bits per byte {figures['bits_per_byte']:.3f} "
        f"(xz -9 needs {figures['xz_bits_per_byte']:.3f})\n"
        f"the run lies in {folder}"
    )


def tell_stop(say: Say, folder: Path, done: int, steps: int) -> None:
    """Say that a run ended before its last step because it was asked to."""
    say(
        f"stopped on request after step {done} of {steps}, which is saved in {folder}: "
        "--resume auto goes on from there"
    )

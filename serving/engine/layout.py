"""A step's chunks as pieces of its forward pass, and whose its logits are."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from serving.engine.batch import Piece
from serving.scheduling.decisions import Chunk
from serving.scheduling.sequences import Sequence


@dataclass
class Layout:
    """``pieces``, with the sequence that each is of, and the numbers of those whose last token's
    logits are wanted: for the next token of ``sampling``, in order, in rows ``sampled_rows`` of
    them, or for the token of the prompt that comes after each position of ``scoring``."""

    pieces: list[Piece] = field(default_factory=list)
    owners: list[Sequence] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    sampling: list[Sequence] = field(default_factory=list)
    sampled_rows: list[int] = field(default_factory=list)
    scoring: list[tuple[Sequence, int]] = field(default_factory=list)
    scored_rows: list[int] = field(default_factory=list)

    def add(self, sequence: Sequence, start: int, stop: int, *, samples: bool) -> None:
        """Tokens ``[start, stop)`` of ``sequence``."""
        if samples:
            self.sampled_rows.append(len(self.wanted))
            self.wanted.append(len(self.pieces))
            self.sampling.append(sequence)
        tokens = sequence.tokens[start:stop]
        self.pieces.append(Piece(tokens, start, sequence.table.block_ids))
        self.owners.append(sequence)

    def add_scored(self, sequence: Sequence, start: int, stop: int, *, samples: bool) -> None:
        """The same where each token's logits are wanted that were not computed before: as pieces of
        one token, of which each has its own."""
        last = len(sequence.request.prompt) - 1
        for at in range(start, stop):
            if sequence.reached <= at < last:
                self.scored_rows.append(len(self.wanted))
                self.wanted.append(len(self.pieces))
                self.scoring.append((sequence, at))
            self.add(sequence, at, at + 1, samples=samples and at + 1 == stop)


def lay_out(chunks: Many[Chunk], sequences: Many[Sequence]) -> Layout:
    """``chunks``, of ``sequences``: those of one token first, as they are."""
    layout = Layout()
    scored = [pair for pair in zip(chunks, sequences, strict=True) if pair[1].scored]
    for chunk, sequence in scored:
        layout.add_scored(sequence, chunk.start, chunk.stop, samples=chunk.samples)
    for chunk, sequence in zip(chunks, sequences, strict=True):
        if not (scored and sequence.scored):
            layout.add(sequence, chunk.start, chunk.stop, samples=chunk.samples)
    return layout

"""The corpus as tokens: memory-mapped from a cache that is keyed by the text and the tokenizer.

A document's tokens are followed by the end-of-sequence token. Special tokens that are spelled out
in the text are read as such, as transformers does. Documents longer than a piece are tokenised
piece by piece, each cut at the end of a line.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hecate.data.cache import Report, build_once
from hecate.data.config import DataConfig
from hecate.data.corpora import SPLITS, Corpus, Piece, Split
from hecate.data.facts import HeldOutFacts, XzSize, held_out_facts
from hecate.data.progress import Progress, quiet
from hecate.data.tokenizer import num_token_ids, tokenizer_digest
from hecate.errors import DataError
from hecate.folders import cache_folder

_FORMAT = 1
_BATCH_CHARACTERS = 1 << 22
_META = "meta.json"


@dataclass(frozen=True)
class TokenStore:
    """One split: ``tokens_T`` (uint16 or uint32, memory-mapped), document ``i`` at
    ``[starts[i], starts[i + 1])``. ``digest`` names the text and the tokenizer.
    """

    split: Split
    tokens_T: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]
    eos_id: int
    digest: str

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_T)

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class TokenizedCorpus:
    """Both splits, and the facts of the held-out one."""

    train: TokenStore
    held_out: TokenStore
    facts: HeldOutFacts


def open_tokens(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    progress: Progress = quiet,
) -> TokenizedCorpus:
    """The tokens of ``corpus``, from the cache or tokenised now on all cores.

    Needs no process group: all ranks, and any other run on the machine, may call it at once. Raises
    ``DataError`` for text that cannot be used and ``StorageError`` for a disk that is full.
    """
    key = f"{_FORMAT}:{corpus.digest}:{tokenizer_digest(tokenizer)}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    entry = cache_folder(config.cache) / "tokens" / digest
    build_once(
        entry,
        lambda folder, report: _tokenise(folder, corpus, tokenizer, report),
        whole=_is_whole,
        what="tokenising",
        progress=progress,
    )
    meta = json.loads((entry / _META).read_bytes())
    stores = {split: _open(entry, split, meta, digest) for split in SPLITS}
    return TokenizedCorpus(stores["train"], stores["held_out"], HeldOutFacts(**meta["facts"]))


def _open(entry: Path, split: Split, meta: dict[str, Any], digest: str) -> TokenStore:
    tokens_T = np.memmap(entry / f"{split}.tokens", dtype=meta["dtype"], mode="r")
    starts = np.fromfile(entry / f"{split}.starts", dtype="<i8")
    return TokenStore(split, tokens_T, starts, meta["eos_id"], digest)


def _is_whole(entry: Path) -> bool:
    try:
        meta = json.loads((entry / _META).read_bytes())
        return all((entry / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (OSError, ValueError):
        return False


class _SplitWriter:
    """Appends the tokens of one split to its file and remembers where its documents start."""

    def __init__(self, file: BinaryIO, dtype: str, eos_id: int) -> None:
        self.starts = array("q", [0])
        self.num_tokens = 0
        self._file = file
        self._dtype = dtype
        self._eos_id = eos_id

    def add(self, token_ids: list[int], *, ends_document: bool) -> None:
        if ends_document:
            token_ids = [*token_ids, self._eos_id]
        self._file.write(np.array(token_ids, dtype=self._dtype).tobytes())
        self.num_tokens += len(token_ids)
        if ends_document:
            self.starts.append(self.num_tokens)


def _tokenise(
    folder: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, report: Report
) -> None:
    """Write both splits and the facts into ``folder``."""
    vocab_size = num_token_ids(tokenizer)
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    eos_id = int(tokenizer.eos_token_id)
    done = 0
    with (
        (folder / "train.tokens").open("wb") as train,
        (folder / "held_out.tokens").open("wb") as held_out,
        XzSize() as xz,
    ):
        writers: dict[Split, _SplitWriter] = {
            "train": _SplitWriter(train, dtype, eos_id),
            "held_out": _SplitWriter(held_out, dtype, eos_id),
        }
        for batch in _batches(corpus.pieces()):
            xz.add(piece.text for piece in batch if piece.split == "held_out")
            ids = tokenizer(
                [piece.text for piece in batch],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            for piece, token_ids in zip(batch, ids, strict=True):
                writers[piece.split].add(token_ids, ends_document=piece.ends_document)
            done += sum(piece.source_bytes for piece in batch)
            report(min(done, corpus.size_bytes), corpus.size_bytes)
        xz_bytes = xz.total()
    for split, writer in writers.items():
        if not writer.num_tokens:
            raise _empty(split, corpus)
        np.array(writer.starts, dtype="<i8").tofile(folder / f"{split}.starts")
    facts = held_out_facts(
        np.memmap(folder / "held_out.tokens", dtype=dtype, mode="r"),
        documents=len(writers["held_out"].starts) - 1,
        text_bytes=xz.text_bytes,
        xz_bytes=xz_bytes,
        vocab_size=vocab_size,
    )
    sizes = {
        name: (folder / name).stat().st_size
        for name in (f"{split}.{part}" for split in SPLITS for part in ("tokens", "starts"))
    }
    meta = {"dtype": dtype, "eos_id": eos_id, "sizes": sizes, "facts": asdict(facts)}
    (folder / _META).write_text(json.dumps(meta, indent=1))


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in batches large enough to keep all cores tokenising."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _empty(split: Split, corpus: Corpus) -> DataError:
    part = "train on" if split == "train" else "hold out"
    return DataError(
        f"data.path {corpus.path} leaves no document to {part}",
        got=f"{corpus.size_bytes:,} bytes in {len(corpus.sources)} sources, "
        f"data.held_out = {corpus.held_out}",
        expected="at least one document in each split",
        fix="bring more text, or raise data.held_out" if split == "held_out" else "bring more text",
    )

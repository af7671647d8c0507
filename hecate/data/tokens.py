"""The corpus as tokens: memory-mapped from a cache that is keyed by the text and the tokenizer.

Documents of text that are longer than a piece are tokenised piece by piece, each cut at the end of
a line. Beside the tokens of conversations lies, a byte each, which of them are to be predicted.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hecate.data.cache import Report, build_once
from hecate.data.chat_template import template_of
from hecate.data.config import DataConfig
from hecate.data.corpora import SPLITS, Corpus, Split
from hecate.data.encoding import Encoded, encode_chat, encode_text
from hecate.data.facts import HeldOutFacts, XzSize, held_out_facts
from hecate.data.packing import Targets
from hecate.data.progress import Progress, quiet
from hecate.data.tokenizer import num_token_ids, tokenizer_digest
from hecate.errors import DataError
from hecate.folders import cache_folder

_FORMAT = 1
_CHAT_FORMAT = 1
_META = "meta.json"


@dataclass(frozen=True)
class TokenStore:
    """One split: ``tokens_T`` (uint16 or uint32, memory-mapped), document ``i`` at
    ``[starts[i], starts[i + 1])``. ``digest`` names the text and the tokenizer. ``targets_T`` says
    which tokens are to be predicted.
    """

    split: Split
    tokens_T: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]
    eos_id: int
    digest: str
    targets_T: Targets = np.True_

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
    chat = config.kind == "chat"
    key = f"{_FORMAT}:{corpus.digest}:{tokenizer_digest(tokenizer)}"
    if chat:
        rendering = json.dumps([template_of(tokenizer), tokenizer.special_tokens_map], default=str)
        key += f":{_CHAT_FORMAT}:{rendering}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    entry = cache_folder(config.cache) / "tokens" / digest
    build_once(
        entry,
        lambda folder, report: _tokenise(folder, corpus, tokenizer, report, chat=chat),
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
    targets_T: Targets = np.True_
    if f"{split}.targets" in meta["sizes"]:
        targets_T = np.memmap(entry / f"{split}.targets", dtype=np.bool_, mode="r")
    return TokenStore(split, tokens_T, starts, meta["eos_id"], digest, targets_T)


def _is_whole(entry: Path) -> bool:
    try:
        meta = json.loads((entry / _META).read_bytes())
        return all((entry / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (OSError, ValueError):
        return False


class _SplitWriter:
    """Appends the tokens of one split to its files and remembers where its documents start."""

    def __init__(self, folder: Path, split: Split, dtype: str, *, chat: bool) -> None:
        self.chat = chat
        self.starts = array("q", [0])
        self.num_tokens = 0
        self._folder, self._split, self._dtype = folder, split, dtype
        self._tokens = self.path("tokens").open("wb")
        self._targets = self.path("targets").open("wb") if chat else None

    def path(self, part: str) -> Path:
        return self._folder / f"{self._split}.{part}"

    def add(self, encoded: Encoded) -> None:
        self._tokens.write(np.array(encoded.token_ids, dtype=self._dtype).tobytes())
        if self._targets is not None:
            self._targets.write(encoded.targets_T.tobytes())
        self.num_tokens += len(encoded.token_ids)
        if encoded.ends_document:
            self.starts.append(self.num_tokens)

    def close(self) -> None:
        self._tokens.close()
        if self._targets is not None:
            self._targets.close()
        np.array(self.starts, dtype="<i8").tofile(self.path("starts"))


def _tokenise(
    folder: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, report: Report, *, chat: bool
) -> None:
    """Write both splits and the facts into ``folder``."""
    vocab_size = num_token_ids(tokenizer)
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    encode = encode_chat if chat else encode_text
    done = 0
    with ExitStack() as stack:
        writers = {split: _SplitWriter(folder, split, dtype, chat=chat) for split in SPLITS}
        for writer in writers.values():
            stack.callback(writer.close)
        xz = stack.enter_context(XzSize())
        for batch in encode(corpus, tokenizer):
            xz.add(part.text for part in batch if part.split == "held_out")
            for part in batch:
                writers[part.split].add(part)
            done += sum(part.source_bytes for part in batch)
            report(min(done, corpus.size_bytes), corpus.size_bytes)
        xz_bytes = xz.total()
    for split, writer in writers.items():
        if not writer.num_tokens:
            raise _empty(split, corpus)
    parts = ("tokens", "starts", "targets") if chat else ("tokens", "starts")
    paths = [writer.path(part) for writer in writers.values() for part in parts]
    meta = {
        "dtype": dtype,
        "eos_id": int(tokenizer.eos_token_id),
        "sizes": {path.name: path.stat().st_size for path in paths},
        "facts": asdict(_facts(writers["held_out"], dtype, xz.text_bytes, xz_bytes, vocab_size)),
    }
    (folder / _META).write_text(json.dumps(meta, indent=1))


def _facts(
    held_out: _SplitWriter, dtype: str, text_bytes: int, xz_bytes: int, vocab_size: int
) -> HeldOutFacts:
    """The facts of what is to be predicted: the whole text, or what the assistant says."""
    tokens_T: NDArray[np.unsignedinteger] = np.memmap(
        held_out.path("tokens"), dtype=dtype, mode="r"
    )
    documents = len(held_out.starts) - 1
    if held_out.chat:
        targets_T = np.fromfile(held_out.path("targets"), dtype=np.bool_)
        tokens_T, unpredicted = tokens_T[targets_T], 0
    else:
        unpredicted = documents
    return held_out_facts(
        tokens_T,
        predicted_tokens=len(tokens_T) - unpredicted,
        documents=documents,
        text_bytes=text_bytes,
        xz_bytes=xz_bytes,
        vocab_size=vocab_size,
    )


def _empty(split: Split, corpus: Corpus) -> DataError:
    part = "train on" if split == "train" else "hold out"
    return DataError(
        f"data.path {corpus.path} leaves no document to {part}",
        got=f"{corpus.size_bytes:,} bytes in {len(corpus.sources)} sources, "
        f"data.held_out = {corpus.held_out}",
        expected="at least one document in each split",
        fix="bring more text, or raise data.held_out" if split == "held_out" else "bring more text",
    )

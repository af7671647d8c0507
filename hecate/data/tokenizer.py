"""The tokenizer of a run: copied from a local folder or trained on the corpus, then kept there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hecate.data.cache import Report, build_once, storage_errors
from hecate.data.chat_template import read_template, template_of
from hecate.data.config import DataConfig
from hecate.data.corpora import Corpus
from hecate.data.progress import Progress, quiet
from hecate.errors import TokenizerError
from hecate.folders import cache_folder
from hecate.models.tokenizer import read_tokenizer

END_OF_TEXT = "<|endoftext|>"

_RECIPE = "byte-level BPE 1"
_MOST_TRAINING_BYTES = 1 << 28


def prepare_tokenizer(
    config: DataConfig, corpus: Corpus, folder: Path, *, progress: Progress = quiet
) -> PreTrainedTokenizerBase:
    """The tokenizer that ``config`` asks for, kept in ``folder`` and loaded from there.

    All ranks call it alike, at once. A trained one depends on the training split and the
    vocabulary size alone, and is trained once for both. For chat it carries the template that
    ``config`` gives, else its own. Raises ``TokenizerError``: among others, when ``folder`` already
    keeps another tokenizer or template, since a run's tokens may not change under it.
    """
    template = read_template(config.chat.template) if config.chat.template else ""
    if config.tokenizer.path:
        wanted = load_tokenizer(Path(config.tokenizer.path).expanduser())
    else:
        wanted = load_tokenizer(_trained(config, corpus, progress))
    if config.kind == "chat":
        wanted.chat_template = template or wanted.chat_template
        template_of(wanted)
    build_once(
        folder,
        lambda partial, report: _save(wanted, partial),
        whole=lambda kept: kept.is_dir() and any(kept.iterdir()),
        what="copying the tokenizer",
        progress=progress,
    )
    kept = load_tokenizer(folder)
    if tokenizer_digest(kept) not in _digests(wanted):
        raise _another("tokenizer", folder, f"{len(kept)} tokens there, {len(wanted)} here")
    if config.kind == "chat" and template_of(kept) != template_of(wanted):
        got = f"one of {len(template_of(kept))} characters there, {len(template_of(wanted))} here"
        raise _another("chat template", folder, got)
    return kept


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local Hugging Face folder, nothing fetched. Raises ``TokenizerError``."""
    if not folder.is_dir():
        raise TokenizerError(
            f"there is no tokenizer folder {folder}",
            got="a file" if folder.exists() else f"nothing at {folder.absolute()}",
            expected="a folder with tokenizer.json or the files of a transformers tokenizer",
            fix='correct data.tokenizer.path, or set it to "" to train one on the corpus',
        )
    tokenizer = read_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer of {folder} has no end-of-sequence token",
            expected="an eos_token in tokenizer_config.json: it ends every document",
            fix="set its eos_token and save it again",
        )
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise ``TokenizerError`` unless a model of ``vocab_size`` has a row for every token."""
    needed = num_token_ids(tokenizer)
    if needed > vocab_size:
        raise TokenizerError(
            "the tokenizer has more tokens than the model's vocabulary",
            got=f"token ids up to {needed - 1}",
            expected=f"ids below the model's vocab_size, {vocab_size}",
            fix="set data.tokenizer.path to the model's own folder, or lower "
            "data.tokenizer.vocab_size; a model from scratch takes a larger vocab_size in "
            "model.sizes",
        )


def num_token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id, gaps and added tokens counted."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides which tokens a text becomes."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        rules.pop("truncation", None)  # how it was last called, not what it is
        rules.pop("padding", None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            saved = sorted(Path(path) for path in tokenizer.save_vocabulary(folder) if path)
            rules = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in saved}
        rules["class"] = type(tokenizer).__qualname__
        rules["vocabulary"] = tokenizer.get_vocab()
    rules["end"] = tokenizer.eos_token_id
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _another(thing: str, folder: Path, got: str) -> TokenizerError:
    return TokenizerError(
        f"{folder} keeps another {thing} than this configuration gives",
        got=got,
        expected=f"the same {thing} for the whole life of a run",
        fix="give the run another name or remove its folder; to continue it, bring back "
        "the data and tokenizer that it began with",
    )


def _digests(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Its digest as it is, and after being saved: some classes save more than they read."""
    yield tokenizer_digest(tokenizer)
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        _save(tokenizer, Path(folder))
        yield tokenizer_digest(load_tokenizer(Path(folder)))


def _trained(config: DataConfig, corpus: Corpus, progress: Progress) -> Path:
    """The cached folder of the tokenizer trained on ``corpus``, trained now if it is not there."""
    recipe = f"{_RECIPE}:{config.tokenizer.vocab_size}:{corpus.digest}"
    key = hashlib.sha256(recipe.encode()).hexdigest()[:32]
    entry = cache_folder(config.cache) / "tokenizers" / key

    def build(folder: Path, report: Report) -> None:
        _save(_train(corpus, config.tokenizer.vocab_size, report), folder)

    build_once(
        entry,
        build,
        whole=lambda folder: (folder / "tokenizer_config.json").is_file(),
        what="training the tokenizer",
        progress=progress,
    )
    return entry


def _train(corpus: Corpus, vocab_size: int, report: Report) -> PreTrainedTokenizerBase:
    """A byte-level BPE of the first 256 MiB of the training split; equal text, equal tokenizer."""
    total = min(corpus.size_bytes, _MOST_TRAINING_BYTES)

    def texts() -> Iterator[str]:
        done = 0
        for piece in corpus.pieces(("train",)):
            yield piece.text
            done += piece.source_bytes
            report(min(done, total), total)
            if done >= total:
                return

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    report(total, total)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the Rust library: a plain Exception around the system's error
        if "os error" not in str(error):
            raise
        raise OSError(str(error)) from error

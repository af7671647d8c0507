"""Tokenizers of local Hugging Face folders, as transformers reads them.

Apart from models: to import what loads those takes seconds, and what only speaks HTTP needs none.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hecate.errors import TokenizerError


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """What transformers makes of ``folder``, nothing fetched. Raises ``TokenizerError``."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the Rust library raises plain Exception
        raise TokenizerError(
            f"{folder} holds no tokenizer that transformers can load",
            got=_first_line(error),
            expected="tokenizer.json and tokenizer_config.json, as save_pretrained writes them",
            fix="save the tokenizer there again",
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def model_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model. Raises ``TokenizerError`` where there is none."""
    cause: Exception | None = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        if len(tokenizer) > len(tokenizer.all_special_ids):
            return tokenizer
        got = "special tokens only"  # what transformers makes up where there are no files
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause, got = error, _first_line(error)
    raise TokenizerError(
        f"there is no usable tokenizer in {folder}",
        got=got,
        expected="tokenizer.json or the files of the model's tokenizer class",
        fix="copy the tokenizer that the model was trained with into the folder",
    ) from cause


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]

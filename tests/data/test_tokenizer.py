"""Tokenizers are trained once on the training split, kept with the run, and loaded by anyone."""

import json
import resource
import shutil
from pathlib import Path

import pytest
from chat import CHATML, MARKED
from ranks import run_ranks
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hecate.data.config import DataConfig, TokenizerConfig
from hecate.data.corpora import load_corpus
from hecate.data.tokenizer import (
    check_vocabulary,
    load_tokenizer,
    num_token_ids,
    prepare_tokenizer,
    tokenizer_digest,
)
from hecate.errors import DataError, StorageError, TokenizerError

ODD = "  def ä(x):\n\treturn '☃'\r\n\n12345  <tag> \x00"


@pytest.fixture
def text(tmp_path):
    """A folder with a text to train on and one, in words of its own, that is held out."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    (folder / "held.txt").write_text("zzzzqqqq zzzzqqqq\n")
    return folder


def config_of(tmp_path, text, vocab_size=280, **tokenizer):
    return DataConfig(
        path=str(text),
        cache=str(tmp_path / "cache"),
        tokenizer=TokenizerConfig(vocab_size=vocab_size, **tokenizer),
    )


def prepared(tmp_path, text, run="run", **settings):
    config = config_of(tmp_path, text, **settings)
    return prepare_tokenizer(config, load_corpus(config), tmp_path / run / "tokenizer")


def test_a_trained_tokenizer_loads_as_any_other_and_spells_any_text(tmp_path, text):
    prepared(tmp_path, text)
    plain = AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer", local_files_only=True)
    assert len(plain) == 280
    assert plain.eos_token == plain.bos_token == plain.pad_token == "<|endoftext|>"
    assert plain.decode(plain(ODD)["input_ids"]) == ODD
    assert plain("<|endoftext|>")["input_ids"] == [plain.eos_token_id]
    assert len(plain(" quick brown")["input_ids"]) < 6


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"])
def test_it_stays_the_same_beside_a_models_configuration(tmp_path, text, family):
    ours = prepared(tmp_path, text)
    folder = tmp_path / "exported"
    shutil.copytree(tmp_path / "run" / "tokenizer", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": 280}))
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert theirs(ODD)["input_ids"] == ours(ODD)["input_ids"]
    assert theirs.eos_token_id == ours.eos_token_id


def test_it_learns_from_the_training_split_alone(tmp_path, text):
    vocabulary = prepared(tmp_path, text).get_vocab()
    assert any("qu" in token for token in vocabulary)
    assert not any("zz" in token or "qq" in token for token in vocabulary)


def test_a_small_corpus_gives_a_small_vocabulary(tmp_path, text):
    assert 257 < num_token_ids(prepared(tmp_path, text, vocab_size=5000)) < 400


def train_apart(ctx, tmp_path, text):
    """Each rank with a cache of its own."""
    return tokenizer_digest(prepared(tmp_path / str(ctx.rank), text))


def test_training_is_deterministic_across_processes(tmp_path, text):
    first, second = run_ranks(train_apart, 2, tmp_path, text)
    assert first == second


def prepare_together(ctx, tmp_path, text):
    tokenizer = prepared(tmp_path, text)
    return tokenizer_digest(tokenizer), tokenizer.name_or_path


def test_all_ranks_prepare_the_same_folder_at_once(tmp_path, text):
    results = run_ranks(prepare_together, 3, tmp_path, text)
    assert len(set(results)) == 1
    assert results[0][1] == str(tmp_path / "run" / "tokenizer")
    assert not list((tmp_path / "run").glob(".*partial*"))


def test_a_second_run_on_the_same_text_does_not_train_again(tmp_path, text):
    first = prepared(tmp_path, text)
    (entry,) = (tmp_path / "cache" / "tokenizers").glob("[!.]*")
    before = (entry / "tokenizer.json").stat()
    heard = []
    config = config_of(tmp_path, text)
    folder = tmp_path / "other" / "tokenizer"
    second = prepare_tokenizer(
        config, load_corpus(config), folder, progress=lambda what, *_: heard.append(what)
    )
    assert tokenizer_digest(first) == tokenizer_digest(second)
    assert (entry / "tokenizer.json").stat() == before
    assert heard == []


def test_a_run_keeps_the_tokenizer_that_it_began_with(tmp_path, text):
    first = prepared(tmp_path, text)
    assert tokenizer_digest(prepared(tmp_path, text)) == tokenizer_digest(first)
    with pytest.raises(TokenizerError, match="(?s)keeps another tokenizer.*280 tokens there, 270"):
        prepared(tmp_path, text, vocab_size=270)
    (text / "train.txt").write_text("other words altogether\n" * 60)
    with pytest.raises(TokenizerError, match="keeps another tokenizer"):
        prepared(tmp_path, text)


def test_a_local_folder_is_copied_beside_the_run_without_the_rest_of_it(tmp_path, text):
    prepared(tmp_path, text, run="given")
    given = tmp_path / "given" / "tokenizer"
    (given / "model.safetensors").write_text("weights")
    (given / "config.json").write_text('{"model_type": "mixtral"}')
    copied = prepared(tmp_path, text, run="run", path=str(given))
    folder = tmp_path / "run" / "tokenizer"
    assert copied.name_or_path == str(folder)
    assert tokenizer_digest(copied) == tokenizer_digest(load_tokenizer(given))
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_how_a_tokenizer_was_last_called_is_not_part_of_its_digest(tmp_path, text):
    tokenizer = prepared(tmp_path, text)
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "the quick brown fox"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before


def test_folders_that_are_no_tokenizers_are_refused_by_name(tmp_path, text):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    prepared(tmp_path, text, run="broken")
    (broken / "tokenizer" / "tokenizer.json").write_text('{"model": 1}')
    for folder, named in [
        ("gone", "no tokenizer folder .*gone"),
        ("text/train.txt", "no tokenizer folder .*train.txt(\n.*)*a file"),
        ("empty", "empty holds no tokenizer"),
        ("broken/tokenizer", "tokenizer holds no tokenizer"),
    ]:
        with pytest.raises(TokenizerError, match=named):
            prepared(tmp_path, text, path=str(tmp_path / folder))
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path, text):
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "words")
    with pytest.raises(TokenizerError, match="words has no end-of-sequence token"):
        prepared(tmp_path, text, path=str(tmp_path / "words"))


def test_a_fault_in_the_corpus_is_named_while_training(tmp_path):
    path = Path(tmp_path, "a.jsonl")
    path.write_text('{"text": "fine"}\n' * 500 + "{\n")
    with pytest.raises(DataError, match=r"a\.jsonl:501"):
        prepared(tmp_path, path)
    assert not list((tmp_path / "cache" / "tokenizers").glob("[!.]*"))


def fill_the_disk(ctx, tmp_path, text):
    """No file of this process may grow past 2000 bytes: what a full disk does, without one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        prepared(tmp_path, text)
    except StorageError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return ""


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, text):
    (message,) = run_ranks(fill_the_disk, 1, tmp_path, text)
    assert str(tmp_path / "cache" / "tokenizers") in message
    assert "data.cache" in message
    assert not list((tmp_path / "cache" / "tokenizers").glob("[!.]*"))
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path, text):
    tokenizer = prepared(tmp_path, text)
    check_vocabulary(tokenizer, 280)
    with pytest.raises(TokenizerError, match="ids up to 279(\n.*)*vocab_size, 279"):
        check_vocabulary(tokenizer, 279)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(TokenizerError, match="ids up to 280"):
        check_vocabulary(tokenizer, 280)


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [{"q": f"the quick {n}", "a": f"brown fox {n}"} for n in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat_config(tmp_path, chats, template, tokenizer=""):
    return DataConfig(
        kind="chat",
        path=str(chats),
        cache=str(tmp_path / "cache"),
        chat={"fields": {"user": "q", "assistant": "a"}, "template": template},
        tokenizer={"vocab_size": 270, "path": str(tokenizer)},
    )


def test_the_chat_template_is_kept_with_the_tokenizer(tmp_path, chats):
    def prepare(template, run, tokenizer=""):
        config = chat_config(tmp_path, chats, template, tokenizer)
        return prepare_tokenizer(config, load_corpus(config), tmp_path / run)

    assert prepare(MARKED, "run").chat_template == MARKED
    plain = AutoTokenizer.from_pretrained(tmp_path / "run", local_files_only=True)
    assert plain.chat_template == MARKED
    assert prepare("", "other", tmp_path / "run").chat_template == MARKED  # its own
    assert prepare(CHATML, "third", tmp_path / "run").chat_template == CHATML
    assert prepare(MARKED, "run").chat_template == MARKED
    with pytest.raises(TokenizerError, match="run keeps another chat template"):
        prepare(CHATML, "run")
    with pytest.raises(TokenizerError, match="has no chat template"):
        prepare("", "fourth")
    assert not (tmp_path / "fourth").exists()

"""Tokens on disk: the text and nothing but the text, once for all processes, whole or not."""

import json
import math
import multiprocessing
import os
import resource
import signal
from collections import Counter

import numpy as np
import pytest
from chat import CHATML, MARKED, byte_tokenizer
from ranks import run_ranks
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hecate.data.config import DataConfig, TokenizerConfig
from hecate.data.corpora import load_corpus
from hecate.data.progress import quiet
from hecate.data.tokenizer import prepare_tokenizer
from hecate.data.tokens import open_tokens
from hecate.errors import DataError, StorageError

PROCESSES = multiprocessing.get_context("forkserver")


def lines(count):
    return "".join(f"line {n} of a text, ä ☃\n" for n in range(count))


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02}.txt").write_text(f"file {n}\n" + lines(5 + n))
    return folder


def opened(tmp_path, path, progress=quiet, **settings):
    config = DataConfig(
        path=str(path),
        cache=str(tmp_path / "cache"),
        tokenizer=TokenizerConfig(vocab_size=270),
        **settings,
    )
    corpus = load_corpus(config)
    tokenizer = prepare_tokenizer(config, corpus, tmp_path / "run" / "tokenizer")
    return open_tokens(corpus, tokenizer, config, progress=progress), corpus, tokenizer


def documents(store, tokenizer):
    parts = zip(store.starts[:-1], store.starts[1:], strict=True)
    return [tokenizer.decode(store.tokens_T[a:b].tolist()) for a, b in parts]


def texts(corpus, split):
    """The documents of a short corpus, each with its end spelled out."""
    return [piece.text + "<|endoftext|>" for piece in corpus.pieces((split,))]


def test_the_text_comes_back_document_by_document(tmp_path, text):
    tokens, corpus, tokenizer = opened(tmp_path, text)
    for store in (tokens.train, tokens.held_out):
        assert documents(store, tokenizer) == texts(corpus, store.split)
        assert store.tokens_T.dtype == np.uint16
        assert isinstance(store.tokens_T, np.memmap)
        assert store.num_documents == len(texts(corpus, store.split))
        assert store.num_tokens == store.starts[-1]
        assert (store.tokens_T[store.starts[1:] - 1] == store.eos_id).all()


def test_facts_are_those_of_the_held_out_split(tmp_path, text):
    tokens, corpus, tokenizer = opened(tmp_path, text)
    facts, held_out = tokens.facts, tokens.held_out
    held_texts = [piece.text for piece in corpus.pieces(("held_out",))]
    counts = Counter(held_out.tokens_T.tolist())
    shares = [count / held_out.num_tokens for count in counts.values()]
    assert facts.unigram_entropy_nats == pytest.approx(-sum(s * math.log(s) for s in shares))
    assert facts.bytes == len("".join(held_texts).encode())
    assert 0 < facts.xz_bytes < facts.bytes
    assert (facts.tokens, facts.documents) == (held_out.num_tokens, len(held_texts))
    assert facts.predicted_tokens == facts.tokens - facts.documents
    assert facts.vocab_size == 270


def test_a_long_document_is_one_document_and_comes_back_whole(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(lines(30_000))
    tokens, _, tokenizer = opened(tmp_path, path)
    (train,), (held_out,) = (documents(s, tokenizer) for s in (tokens.train, tokens.held_out))
    assert (train + held_out).replace("<|endoftext|>", "") == path.read_text()


def test_records_keep_the_order_of_their_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"record {n}"}) + "\n" for n in range(300)))
    tokens, _, tokenizer = opened(tmp_path, path)
    for store in (tokens.train, tokens.held_out):
        numbers = [int(d.split()[1].split("<")[0]) for d in documents(store, tokenizer)]
        assert numbers == sorted(numbers)


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path, text):
    words = {f"w{n}": n for n in range(70_000)} | {"[UNK]": 70_000, "[END]": 70_001}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    wide = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="[END]", unk_token="[UNK]", pad_token="[END]"
    )
    for n in range(30):
        (text / f"{n:02}.txt").write_text(f"w{n} w69999 other\n")
    config = DataConfig(path=str(text), cache=str(tmp_path / "cache"))
    tokens = open_tokens(load_corpus(config), wide, config)
    assert tokens.train.tokens_T.dtype == np.uint32
    assert tokens.train.tokens_T[1:4].tolist() == [69_999, 70_000, 70_001]


def test_truncation_and_padding_left_in_a_tokenizer_change_nothing(tmp_path, text):
    tokens, corpus, tokenizer = opened(tmp_path, text)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=2)
    config = DataConfig(path=str(text), cache=str(tmp_path / "cache2"))
    again = open_tokens(corpus, tokenizer, config)
    assert np.array_equal(again.train.tokens_T, tokens.train.tokens_T)


def test_the_same_text_elsewhere_is_not_tokenised_again(tmp_path, text):
    heard = []
    opened(tmp_path, text, progress=lambda *call: heard.append(call))
    assert [call[0] for call in heard] == ["tokenising"] * len(heard)
    assert heard[-1][1] == heard[-1][2] > 0
    (entry,) = (tmp_path / "cache" / "tokens").glob("[!.]*")
    before = {path.name: path.stat().st_mtime_ns for path in entry.iterdir()}
    text.rename(tmp_path / "moved")
    heard.clear()
    opened(tmp_path, tmp_path / "moved", progress=lambda *call: heard.append(call))
    assert heard == []
    assert {path.name: path.stat().st_mtime_ns for path in entry.iterdir()} == before


def test_other_text_and_other_tokenizers_have_entries_of_their_own(tmp_path, text):
    first, corpus, tokenizer = opened(tmp_path, text)
    tokenizer.add_tokens(["of a text"])
    config = DataConfig(path=str(text), cache=str(tmp_path / "cache"))
    second = open_tokens(corpus, tokenizer, config)
    (text / "00.txt").write_text("changed\n")
    third = open_tokens(load_corpus(config), tokenizer, config)
    assert len({tokens.train.digest for tokens in (first, second, third)}) == 3
    assert second.train.num_tokens < first.train.num_tokens


@pytest.mark.parametrize("name", ["train.tokens", "held_out.starts", "meta.json"])
def test_a_damaged_entry_is_tokenised_again(tmp_path, text, name):
    tokens, _, _ = opened(tmp_path, text)
    train = tokens.train.tokens_T.tolist()
    (entry,) = (tmp_path / "cache" / "tokens").glob("[!.]*")
    (entry / name).write_bytes((entry / name).read_bytes()[:-4])
    again, _, _ = opened(tmp_path, text)
    assert again.train.tokens_T.tolist() == train


def open_together(ctx, tmp_path, text):
    tokens, _, _ = opened(tmp_path, text)
    (entry,) = (tmp_path / "cache" / "tokens").glob("[!.]*")
    inode = (entry / "train.tokens").stat().st_ino
    return inode, tokens.train.tokens_T.tolist(), tokens.facts


def test_processes_that_open_together_share_one_entry(tmp_path, text):
    first, second = run_ranks(open_together, 2, tmp_path, text)
    assert first == second
    assert not list((tmp_path / "cache" / "tokens").glob("*partial*"))


def die_in_the_middle(tmp_path, path):
    def die(what, done, total):
        if 0 < done < total:
            os.kill(os.getpid(), signal.SIGKILL)

    opened(tmp_path, path, progress=die)


def test_a_process_killed_in_the_middle_leaves_nothing_that_is_matched(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(("a" * 31 + "\n") * 150_000)  # more than one batch
    killed = PROCESSES.Process(target=die_in_the_middle, args=(tmp_path, path))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    cache = tmp_path / "cache" / "tokens"
    (left,) = cache.glob(".*partial*")
    assert (left / "train.tokens").exists()
    assert not list(cache.glob("[!.]*"))
    tokens, corpus, _ = opened(tmp_path, path)
    assert tokens.facts.bytes == sum(s.size_bytes for s in corpus.sources if s.split == "held_out")
    assert not list(cache.glob(".*partial*"))


def fill_the_disk(ctx, tmp_path, text):
    """No file may grow past what the tokenizer needs: what a full disk does, without one."""
    config = DataConfig(
        path=str(text), cache=str(tmp_path), tokenizer=TokenizerConfig(vocab_size=270)
    )
    corpus = load_corpus(config)
    tokenizer = prepare_tokenizer(config, corpus, tmp_path / "run")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        open_tokens(corpus, tokenizer, config)
    except StorageError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return ""


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, text):
    (message,) = run_ranks(fill_the_disk, 1, tmp_path, text)
    assert "cannot write to" in message and "tokens" in message
    assert not list((tmp_path / "tokens").glob("[!.]*"))
    assert not list((tmp_path / "tokens").glob("*partial*"))


def test_a_fault_in_the_corpus_is_named_and_leaves_nothing(tmp_path, text):
    _, _, tokenizer = opened(tmp_path, text)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 500 + '{"body": "x"}\n')
    config = DataConfig(path=str(path), cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"a\.jsonl:501 has no field 'text'(\n.*)*'body'"):
        open_tokens(load_corpus(config), tokenizer, config)
    assert len(list((tmp_path / "cache" / "tokens").glob("[!.]*"))) == 1


def test_a_split_without_a_document_is_an_error(tmp_path, text):
    _, _, tokenizer = opened(tmp_path, text)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the only record"}\n{"text": ""}\n')
    config = DataConfig(path=str(path), cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"a\.jsonl leaves no document to hold out"):
        open_tokens(load_corpus(config), tokenizer, config)


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [{"q": "?" * (n % 9 + 1) + str(n), "a": f"a{n} ☃"} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat_tokens(tmp_path, chats, template=MARKED, tokenizer=None, **chat):
    fields = {"user": "q", "assistant": "a"}
    config = DataConfig(
        kind="chat",
        path=str(chats),
        cache=str(tmp_path / "cache"),
        chat={"fields": fields, **chat},
    )
    corpus = load_corpus(config)
    return open_tokens(corpus, tokenizer or byte_tokenizer(template), config), corpus


def test_conversations_lie_beside_which_of_their_tokens_are_learnt(tmp_path, chats):
    tokens, corpus = chat_tokens(tmp_path, chats)
    tokenizer = byte_tokenizer(MARKED)
    for store in (tokens.train, tokens.held_out):
        records = [record for _, record in corpus.records((store.split,))]
        assert store.num_documents == len(records) > 5
        assert isinstance(store.targets_T, np.memmap)
        assert store.targets_T.shape == store.tokens_T.shape
        for document, record in enumerate(records):
            part = slice(store.starts[document], store.starts[document + 1])
            question, answer = (message.content for message in record.messages)
            assert tokenizer.decode(store.tokens_T[part].tolist()) == (
                f"<|im_start|>user\n{question}<|im_end|>\n"
                f"<|im_start|>assistant\n{answer}<|im_end|>\n"
            )
            learnt = store.tokens_T[part][store.targets_T[part]]
            assert tokenizer.decode(learnt.tolist()) == answer + "<|im_end|>"


def test_facts_of_conversations_are_those_of_what_the_assistant_says(tmp_path, chats):
    tokens, corpus = chat_tokens(tmp_path, chats)
    answers = [record.messages[1].content for _, record in corpus.records(("held_out",))]
    facts = tokens.facts
    assert facts.bytes == len("".join(answers).encode())
    assert facts.tokens == facts.predicted_tokens == facts.bytes + len(answers)  # and the ends
    assert facts.documents == len(answers) == tokens.held_out.num_documents
    learnt = Counter("".join(answers).encode())
    counts = [*learnt.values(), len(answers)]
    shares = [count / facts.tokens for count in counts]
    assert facts.unigram_entropy_nats == pytest.approx(-sum(s * math.log(s) for s in shares))


def test_what_changes_the_rendering_has_an_entry_of_its_own(tmp_path, chats):
    first, _ = chat_tokens(tmp_path, chats)
    renamed = byte_tokenizer(MARKED)
    renamed.pad_token = "<|im_end|>"
    others = [
        chat_tokens(tmp_path, chats, CHATML)[0],
        chat_tokens(tmp_path, chats, system="s")[0],
        chat_tokens(tmp_path, chats, tokenizer=renamed)[0],
    ]
    assert len({tokens.train.digest for tokens in (first, *others)}) == 4
    again, _ = chat_tokens(tmp_path, chats, too_long="truncate")
    assert again.train.digest == first.train.digest


def test_a_bad_conversation_leaves_no_entry_behind(tmp_path, chats):
    with chats.open("a") as file:
        file.write('{"q": "last", "a": ""}\n')
    with pytest.raises(DataError, match=r"chats\.jsonl:201: field 'a' says nothing"):
        chat_tokens(tmp_path, chats)
    assert list((tmp_path / "cache" / "tokens").glob("[!.]*")) == []

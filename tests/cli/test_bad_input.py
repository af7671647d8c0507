"""Bad input on the real command line: one message, how to mend it, exit code 2, no mess."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import TOY, finish, fork, hecate, set_, start, succeed, write_config, write_corpus

LLAMA = "{hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus whose tokens are in its cache after the first run."""
    folder = tmp_path_factory.mktemp("bad_input")
    write_corpus(folder / "corpus", files=4)
    (folder / "empty").mkdir()
    chats = folder / "chats"
    chats.mkdir()
    good = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
    for name, last in [
        ("good", good),
        ("cut", '{"messages": [{"role'),
        ("role", good.replace("user", "wizard")),
        ("empty", good.replace('"q"', '""')),
        ("silent", '{"messages": [{"role": "user", "content": "q"}]}'),
    ]:
        (chats / f"{name}.jsonl").write_text(f"{good}\n{last}\n")
    return folder


@pytest.fixture
def folder(corpus: Path) -> Iterator[Path]:
    """The same folder with a good configuration and no run in it."""
    write_config(corpus / "toy.yaml")
    yield corpus
    (corpus / "typo.yaml").unlink(missing_ok=True)
    for path in sorted((corpus / "runs").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def assert_one_message(stderr: str, *said: str) -> None:
    """One error in its four parts and nothing else."""
    first, *rest = stderr.rstrip("\n").split("\n")
    assert first.startswith("error: "), stderr
    assert [line.split(":")[0].strip() for line in rest] == ["got", "expected", "fix"], stderr
    for words in said:
        assert words in stderr


def left_in(run: Path) -> set[str]:
    """What a run that could not begin has left; dot files are locks."""
    return {path.name for path in run.glob("[!.]*")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(["train.stepps=3"], ("stepps", "train.steps"), id="unknown-key"),
        pytest.param(["train.steps=many"], ("train.steps", "many", "--set"), id="wrong-type"),
        pytest.param(["data.path=nowhere"], ("data.path nowhere",), id="missing-data"),
        pytest.param(["data.path=empty"], ("an empty folder", ".txt"), id="empty-data"),
        pytest.param(
            ["model.family=llama", f"model.sizes={LLAMA}"],
            ("LlamaForCausalLM has no MoE layer", "qwen3_moe"),
            id="not-moe",
        ),
        pytest.param(["model.family=mixtrl"], ("mixtrl", "mixtral"), id="unknown-family"),
        pytest.param(["model.sizes.hiden_size=9"], ("hiden_size", "hidden_size"), id="size"),
        pytest.param(
            ["data.sequence_tokens=65"],
            ("data.sequence_tokens", "max_position_embeddings = 64"),
            id="too-long",
        ),
        pytest.param(
            ["model.sizes.vocab_size=100"],
            ("the tokenizer has more tokens", "vocab_size, 100"),
            id="vocabulary",
        ),
        *(
            pytest.param(["data.kind=chat", f"data.path=chats/{name}.jsonl"], said, id=name)
            for name, said in {
                "cut": ("chats/cut.jsonl:2 is not a line of JSON", "mend or delete"),
                "role": ("chats/role.jsonl:2: turn 1", "'wizard'", "system, user, assistant"),
                "empty": ("chats/empty.jsonl:2: turn 1 says nothing", "drop that record"),
                "silent": ("chats/silent.jsonl:2: the assistant says nothing", "turns of user"),
                "good": ("has no chat template", "data.chat.template"),
            }.items()
        ),
        pytest.param(["data.kind=chat"], ("no file below corpus", ".jsonl, .parquet"), id="text"),
        pytest.param(["data.chat.system=x"], ("set kind to chat",), id="chat-of-text"),
        pytest.param(
            ["data.tokenizer.path=empty"], ("empty holds no tokenizer",), id="no-tokenizer"
        ),
    ],
)
def test_a_configuration_that_cannot_be_trained(
    folder: Path, changes: list[str], said: tuple[str, ...]
) -> None:
    words = [word for change in changes for word in ("--set", change)]
    done = hecate("train", "toy.yaml", *words, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert_one_message(done.stderr, *said)
    assert left_in(folder / "runs" / "toy") <= {"config.yaml", "tokenizer"}


def test_an_unknown_key_is_found_in_its_line(folder: Path) -> None:
    (folder / "typo.yaml").write_text("name: toy\ntrain:\n  steps: 4\n  batch_sequence: 5\n")
    done = hecate("train", "typo.yaml", cwd=folder)
    assert done.returncode == 2
    assert_one_message(done.stderr, "typo.yaml:4", "batch_sequences")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["train", "tyo.yaml"], ("tyo.yaml", "toy.yaml"), id="no-config"),
        pytest.param(["generate", "corpus", "hello"], ("no model in corpus",), id="no-model"),
        pytest.param(["eval", "corpus"], ("corpus is not the folder of a run",), id="eval"),
        pytest.param(["export", "corpus", "out"], ("corpus has no checkpoint",), id="export"),
        pytest.param(
            ["train", "toy.yaml", "--resume", "corpus/step-00000007"],
            ("there is no checkpoint corpus/step-00000007",),
            id="resume-nothing",
        ),
        pytest.param(
            ["train", "toy.yaml", "--resume", "corpus"], ("corpus", "meta.json"), id="resume-folder"
        ),
    ],
)
def test_what_is_not_there(folder: Path, words: list[str], said: tuple[str, ...]) -> None:
    done = hecate(*words, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert_one_message(done.stderr, *said)
    assert not (folder / "out").exists()


def test_a_run_is_not_begun_over_another(folder: Path) -> None:
    checkpoint = folder / "runs" / "toy" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    done = hecate("train", "toy.yaml", cwd=folder)
    assert done.returncode == 2
    assert_one_message(done.stderr, "runs/toy already holds checkpoints", "--resume auto")
    assert checkpoint.is_dir() and left_in(folder / "runs" / "toy") == {"checkpoints"}


def test_what_was_mended_runs_under_the_same_name(folder: Path) -> None:
    """The tokenizer that a failed start kept does not stand in the way of a smaller one."""
    config = {**TOY, "model": {**TOY["model"], "sizes": {**TOY["model"]["sizes"]}}}
    config["model"]["sizes"]["vocab_size"] = 280
    write_config(folder / "toy.yaml", config)
    assert hecate("train", "toy.yaml", cwd=folder).returncode == 2
    mended = set_(data__tokenizer__vocab_size=280, train__steps=1)
    succeed("train", "toy.yaml", *mended, cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"data__path": "nowhere"}, "data.path nowhere does not exist", id="data"),
        pytest.param({"train__stepps": 3}, "train.steps", id="unknown-key"),
    ],
)
def test_two_ranks_say_it_once(folder: Path, changes: dict[str, object], said: str) -> None:
    """Under torchrun, which ends the other rank before it can say it too."""
    done = finish(start("train", "toy.yaml", *set_(**changes), cwd=folder, ranks=2), 120)
    assert done.returncode != 0
    before_torchrun = done.stderr.split("torch/distributed/elastic")[0]
    ours = re.findall(r"^error.*(?:\n  .*)*", before_torchrun, re.MULTILINE)
    assert len(ours) == 1 and not re.search("^error", done.stderr.split(ours[0])[1], re.MULTILINE)
    assert_one_message(ours[0], said)
    assert "exitcode  : 2" in done.stderr


def test_more_ranks_than_sequences(folder: Path) -> None:
    done = hecate("train", "toy.yaml", *set_(train__batch_sequences=1), cwd=folder, ranks=2)
    assert done.returncode == 2
    ours = re.findall(r"^error.*(?:\n  .*)*", done.stderr, re.MULTILINE)
    assert [message.split(":")[0] for message in ours] == ["error", "error on rank 1"]
    assert all("1 sequences for 2 ranks" in message for message in ours)


def test_a_port_in_use(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        port = str(taken.getsockname()[1])
        done = finish(fork("train", "toy.yaml", cwd=folder, **place, MASTER_PORT=port), 120)
    assert done.returncode == 2
    assert_one_message(done.stderr, "could not join the job", "free the port")

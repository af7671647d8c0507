"""Supervised fine-tuning as a user starts it: from a folder with a chat template, and on again."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from chat import CHATML, MARKED, byte_tokenizer
from jobs import metrics, set_, succeed, write_config
from toy_models import toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hecate.config import load_config
from hecate.data import load_corpus
from hecate.train.config import RunConfig

pytestmark = pytest.mark.slow

TOKENS, LONG, CHATS = 64, 3, 80
CONFIG = {
    "name": "chat",
    "model": {"path": "model"},
    "data": {
        "kind": "chat",
        "path": "chats.jsonl",
        "cache": "cache",
        "sequence_tokens": TOKENS,
        "held_out": 0.2,
        "chat": {"system": "s"},
    },
    "train": {"steps": 4, "batch_sequences": 5},
    "checkpoint": {"every": 2},
    "logging": {"every": 1, "sinks": ["jsonl"]},
}


@dataclass(frozen=True)
class Finished:
    """A run of two ranks, and what it printed."""

    folder: Path
    printed: str
    evaluated: dict[str, float]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("chat")
    toy_model("qwen3_moe", vocab_size=264).save_pretrained(folder / "model")
    byte_tokenizer(CHATML).save_pretrained(folder / "model")
    pick = random.Random(0)
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(CHATS):
            answer = "".join(pick.choices("abcdef", k=80 if number < LONG else pick.randint(1, 5)))
            turns = [("user", f"{number}?"), ("assistant", answer)]
            if number % 3 == 0 and number >= LONG:
                turns += [("user", "?"), ("assistant", "y")]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    printed = succeed("train", write_config(folder / "chat.yaml", CONFIG), cwd=folder, ranks=2)
    lines = succeed("eval", "runs/chat", cwd=folder).splitlines()
    succeed("export", "runs/chat", "exported", cwd=folder)
    evaluated = {name: float(value) for name, value in (line.split() for line in lines)}
    return Finished(folder, printed, evaluated)


def test_what_does_not_fit_is_counted_once(finished: Finished) -> None:
    said = f"of {CHATS} conversations, {LONG} are longer than data.sequence_tokens = {TOKENS}"
    assert finished.printed.count(said) == 1
    assert f"{LONG} left out, 0 cut to it" in finished.printed
    assert finished.printed.count(f"sequences of {TOKENS} tokens to ") == 1
    changes = set_(name="cut", data__chat__too_long="truncate", train__steps=1)
    printed = succeed("train", "chat.yaml", *changes, cwd=finished.folder)
    assert f"{said}: 0 left out, {LONG} cut to it" in printed


def test_the_held_out_loss_is_plain_transformers_on_what_the_assistant_says(
    finished: Finished,
) -> None:
    config = load_config(RunConfig, finished.folder / "runs" / "chat" / "config.yaml").value
    own = {"path": str(finished.folder / "chats.jsonl"), "cache": str(finished.folder / "cache")}
    corpus = load_corpus(config.data.model_copy(update=own))
    model = AutoModelForCausalLM.from_pretrained(finished.folder / "exported")
    tokenizer = byte_tokenizer(MARKED)
    total, targets = 0.0, 0
    for _, record in corpus.records(("held_out",)):
        messages = [{"role": turn.role, "content": turn.content} for turn in record.messages]
        assert messages[0] == {"role": "system", "content": "s"}
        encoded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = torch.tensor(encoded["input_ids"]), torch.tensor(encoded["assistant_masks"])
        if len(ids) > TOKENS:
            continue
        mask |= mask.roll(1)  # CHATML's line end after an answer belongs to it
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        losses = F.cross_entropy(logits, ids[1:], reduction="none")
        total += float(losses[mask[1:] > 0].sum())
        targets += int(mask.sum())
    assert targets > 50
    assert finished.evaluated["loss"] == pytest.approx(total / targets, abs=1e-4)
    assert finished.evaluated["loss"] < 1.5 * math.log(264)


def test_the_export_carries_the_template_and_answers(finished: Finished) -> None:
    exported = AutoTokenizer.from_pretrained(finished.folder / "exported")
    assert exported.chat_template == CHATML
    words = ["3?", "--chat", "--max-tokens", "5", "--temperature", "0"]
    from_export = succeed("generate", "exported", *words, cwd=finished.folder)
    assert from_export.startswith("3?\n") and len(from_export) > 4
    assert succeed("generate", "runs/chat", *words, cwd=finished.folder) == from_export


def test_a_stopped_run_goes_on_with_the_same_conversations_on_another_world(
    finished: Finished,
) -> None:
    runs = finished.folder / "runs"
    (runs / "resumed").mkdir()
    shutil.copytree(runs / "chat" / "tokenizer", runs / "resumed" / "tokenizer")
    checkpoint = runs / "chat" / "checkpoints" / "step-00000002"
    words = ["chat.yaml", *set_(name="resumed"), "--resume", checkpoint]
    succeed("train", *words, cwd=finished.folder, ranks=3)
    straight, resumed = metrics(runs / "chat")[2:], metrics(runs / "resumed")
    assert [line["step"] for line in resumed] == [line["step"] for line in straight] == [3, 4]
    for ours, theirs in zip(resumed, straight, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)

"""Whole runs as a user starts them: train under torchrun, evaluate, export, generate, continue."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jobs import TOY, finish, hecate, metrics, set_, start, succeed, write_config, write_corpus
from ranks import run_ranks
from torch.distributed import HashStore
from toy_models import toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hecate.checkpoint.store import CheckpointStore
from hecate.config import load_config
from hecate.data import (
    MicroBatch,
    TokenizedCorpus,
    TrainStream,
    held_out_batches,
    load_corpus,
    open_tokens,
)
from hecate.data.tokenizer import load_tokenizer, num_token_ids
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig
from hecate.train.metrics import PhaseClock
from hecate.train.run import train
from hecate.train.state import model_state

pytestmark = pytest.mark.slow

STEPS, ROWS, TOKENS = 4, 5, 32


@dataclass(frozen=True)
class Finished:
    """A run of two ranks, what it printed, and what was made of it."""

    folder: Path
    printed: str
    evaluated: dict[str, float]
    exported: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "toy"

    @property
    def config(self) -> RunConfig:
        return load_config(RunConfig, self.run / "config.yaml").value

    def corpus(self, config: RunConfig) -> TokenizedCorpus:
        data = config.data.model_copy(
            update={"path": str(self.folder / "corpus"), "cache": str(self.folder / "cache")}
        )
        return open_tokens(load_corpus(data), load_tokenizer(self.run / "tokenizer"), data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder / "corpus")
    config = write_config(folder / "toy.yaml")
    changes = set_(logging__sinks="[console, jsonl, wandb]", checkpoint__keep=1, seed=3)
    # Under torchrun: what a forked rank shares with others is not all in the memory it takes.
    done = finish(start("train", config, *changes, cwd=folder, ranks=2), 120)
    assert done.returncode == 0, done.stderr
    lines = succeed("eval", "runs/toy", cwd=folder).splitlines()
    evaluated = {name: float(value) for name, value in (line.split() for line in lines)}
    said = succeed("export", "runs/toy", "exported", cwd=folder)
    assert "wrote exported" in said and f"step {STEPS}" in said
    return Finished(folder, done.stdout, evaluated, folder / "exported")


def plain_loss(model: torch.nn.Module, batches: Iterable[MicroBatch]) -> tuple[float, int]:
    """Plain transformers' summed loss and the number of labels, one document at a time."""
    total, labels = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            ids = batch.input_ids_BS.flatten().split(batch.document_lengths)
            targets = batch.labels_BS.flatten().split(batch.document_lengths)
            for ids_T, labels_T in zip(ids, targets, strict=True):
                logits_TV = model(ids_T[None]).logits[0]
                total += float(F.cross_entropy(logits_TV, labels_T, reduction="sum"))
                labels += int((labels_T != -100).sum())
    return total, labels


def test_every_step_is_in_the_metrics(finished: Finished) -> None:
    text = (finished.run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    steps, evaluations = lines[:-1], lines[-1:]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    for line in steps:
        assert 0 < line["loss"] < 2 * math.log(300) and line["grad_norm"] > 0
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert line["tokens_per_s"] > 0 and 0 < line["mfu"] < 1 and 0 < line["experts/mfu"] < 1
        slots = [sum(tokens_E) for tokens_E in line["load/tokens_per_expert"]]
        assert slots == [ROWS * TOKENS * 2] * 2
        for phase in ("data", "forward", "backward", "optimizer"):
            assert line[f"seconds/{phase}"] > 0
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert set(evaluations[0]) >= {"eval/loss", "eval/perplexity", "eval/bits_per_byte"}


def test_memory_is_estimated_before_training_and_measured_after(finished: Finished) -> None:
    record = json.loads((finished.run / "memory.json").read_text())
    assert len(record["peak_bytes"]) == 2, "of each rank"
    assert sum(record["parts"].values()) == record["estimated_bytes"]
    ratio = max(record["peak_bytes"]) / record["estimated_bytes"]
    assert record["measured_over_estimated"] == pytest.approx(ratio)
    # Of a toy, almost all is the process before the model, and code that the first step touches.
    more = max(record["peak_bytes"]) - record["estimated_bytes"]
    assert -0.1 * record["estimated_bytes"] < more < 64 * 2**20
    estimated = finished.printed.index("memory of a rank, estimated: ")
    assert estimated < finished.printed.index("step 1/4")
    assert finished.printed.index("step 4/4") < finished.printed.index("measured: at most ")


def test_the_folder_holds_what_was_run(finished: Finished) -> None:
    names = {path.name for path in finished.run.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.yaml",
        "memory.json",
        "starts.jsonl",
        "metrics.jsonl",
        "loads.jsonl",
        "tokenizer",
        "wandb",
        "checkpoints",
    }
    config = finished.config
    assert (config.seed, config.checkpoint.keep, config.train.steps) == (3, 1, STEPS)
    assert config.model.sizes == TOY["model"]["sizes"]
    assert [path.name for path in (finished.run / "checkpoints").iterdir()] == ["step-00000004"]
    (offline,) = (finished.run / "wandb").glob("offline-run-*/run-*.wandb")
    run_id = (finished.run / "wandb" / "run-id").read_text().strip()
    assert offline.name == f"run-{run_id}.wandb" and offline.stat().st_size > 1000
    assert len(AutoTokenizer.from_pretrained(finished.run / "tokenizer")) == 300


def test_rank_0_alone_reports_once(finished: Finished) -> None:
    assert finished.printed.count("held-out loss") == 1
    assert "unigram entropy" in finished.printed and "xz -9 needs" in finished.printed
    assert "the run lies in runs/toy" in finished.printed
    assert len(re.findall(rf"step {STEPS}/{STEPS}  loss", finished.printed)) == 1


def test_evaluation_and_export_agree_with_plain_transformers(finished: Finished) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished.exported)
    corpus = finished.corpus(finished.config)
    batches = held_out_batches(
        corpus.held_out, sequence_tokens=TOKENS, batch_sequences=7, rank=0, world_size=1
    )
    total, labels = plain_loss(model, batches)
    assert labels == corpus.facts.predicted_tokens > 100
    assert finished.evaluated["loss"] == pytest.approx(total / labels, abs=1e-4)
    logged = json.loads((finished.run / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert finished.evaluated[name] == pytest.approx(logged[f"eval/{name}"], rel=1e-4)
    assert finished.evaluated["unigram_entropy"] == pytest.approx(
        corpus.facts.unigram_entropy_nats, rel=1e-4
    )


def test_the_exported_logits_are_the_trainers(finished: Finished) -> None:
    exported = AutoModelForCausalLM.from_pretrained(finished.exported)
    tokenizer = load_tokenizer(finished.run / "tokenizer")
    with open_mesh(MeshConfig(device="cpu"), Rendezvous(0, 1, 0, HashStore())) as ctx:
        trainer = build_trainer(
            finished.config,
            ctx,
            vocab_size=num_token_ids(tokenizer),
            phase=PhaseClock(lambda: 0.0).phase,
            fill=False,
        )
        store = CheckpointStore(
            finished.run / "checkpoints", group=ctx.groups.checkpoint, rank=0, keep=0
        )
        newest = store.newest()
        assert newest is not None
        store.load(newest, model_state(trainer))
        trainer.experts.refresh()
        ids = torch.arange(40)[None]
        with torch.no_grad():
            ours = trainer.model.eval()(ids, use_cache=False).logits
            torch.testing.assert_close(exported(ids).logits, ours, rtol=1e-5, atol=1e-5)


def test_the_exported_folder_knows_where_a_text_ends(finished: Finished) -> None:
    end = load_tokenizer(finished.run / "tokenizer").eos_token_id
    model = AutoModelForCausalLM.from_pretrained(finished.exported)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == end
    assert model.config.pad_token_id is None


def test_a_run_and_its_export_generate_the_same(finished: Finished) -> None:
    words = ["a", "--max-tokens", "12", "--temperature", "0"]
    from_run = succeed("generate", "runs/toy", *words, cwd=finished.folder)
    assert from_run.startswith("a") and len(from_run) > 4
    assert succeed("generate", "exported", *words, cwd=finished.folder) == from_run


def test_three_ranks_share_four_experts_and_five_sequences(finished: Finished) -> None:
    changes = set_(name="three", seed=3)
    succeed("train", "toy.yaml", *changes, cwd=finished.folder, ranks=3)
    ours, theirs = metrics(finished.folder / "runs" / "three"), metrics(finished.run)
    for three, two in zip(ours, theirs, strict=True):
        assert three["loss"] == pytest.approx(two["loss"], abs=1e-4)
        assert three["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    figures = succeed("eval", "runs/three", cwd=finished.folder, ranks=2)
    assert float(figures.split()[1]) == pytest.approx(finished.evaluated["loss"], abs=1e-4)


def continue_on_rank(ctx: ParallelContext, config: RunConfig) -> None:
    train(config, origins={})


def saved_toy(folder: Path, tokenizer: Path) -> Path:
    """A deepseek_v3 as ``save_pretrained`` leaves it, random weights everywhere."""
    toy_model("deepseek_v3", vocab_size=300).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("source", "world_size"), [("export", 2), ("save_pretrained", 3)])
def test_training_continues_from_a_folder(
    finished: Finished, source: str, world_size: int, tmp_path: Path
) -> None:
    """The folder's tokenizer is the default: one trained here would have another size."""
    path = finished.exported
    if source == "save_pretrained":
        path = saved_toy(tmp_path / "model", finished.run / "tokenizer")
    config = RunConfig(
        name="continued",
        folder=str(tmp_path),
        model={"path": str(path)},
        data={
            "path": str(finished.folder / "corpus"),
            "cache": str(finished.folder / "cache"),
            "sequence_tokens": TOKENS,
        },
        train={"steps": 2, "batch_sequences": ROWS},
        logging={"every": 1, "sinks": ["jsonl"]},
    )
    run_ranks(continue_on_rank, world_size, config)
    corpus = finished.corpus(config)
    stream = TrainStream(
        corpus.train,
        sequence_tokens=TOKENS,
        batch_sequences=ROWS,
        accumulation=1,
        seed=config.seed,
        rank=0,
        world_size=1,
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    total, labels = plain_loss(model, stream.next_step())
    first, second = metrics(tmp_path / "continued")
    assert first["loss"] == pytest.approx(total / labels, abs=1e-5)
    assert second["loss"] != first["loss"]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "continued" / "tokenizer")) == 300


@pytest.mark.parametrize("command", ["eval", "export", "generate"])
def test_a_damaged_checkpoint_is_refused_by_every_command_that_reads_it(
    command: str, finished: Finished, tmp_path: Path
) -> None:
    """One flipped byte in the middle of a rank's tensors."""
    run = tmp_path / "runs" / "toy"
    # What generate has exported of the sound checkpoint would do for it.
    shutil.copytree(finished.run, run, ignore=shutil.ignore_patterns("export-*"))
    (checkpoint,) = (run / "checkpoints").iterdir()
    file = max(checkpoint.glob("__1_*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    more = {"eval": [], "export": [str(tmp_path / "out")], "generate": ["def"]}[command]
    done = hecate(command, str(run), *more, cwd=finished.folder)
    assert done.returncode == 2, done.stderr
    said = rf"checkpoint {re.escape(str(checkpoint))} is damaged: \S+ .*in {re.escape(file.name)}\n"
    assert re.search(said, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()

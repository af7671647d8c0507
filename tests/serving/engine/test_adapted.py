"""Adapters in the compiled forward pass, mixed in its steps, against PEFT's merged weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft_adapters import ATTENTION, EXPERTS, MLP, merged, save_adapter
from served import served_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from serving.engine.adapted import CompiledAdapted
from serving.engine.batch import Piece
from serving.engine.compiled import CompiledForward
from serving.engine.forward import HuggingFaceForward
from serving.engine.loading import adopt
from serving.lora.adapters import Adapter
from serving.lora.arrival import Arrival, Assistant
from serving.lora.assist import HostAssistants
from serving.lora.layers import AdapterLayers
from serving.lora.peft_folder import read_adapter
from serving.lora.slots import Place, Slots
from serving.lora.targets import NO_LAYER, Targets, find_targets
from serving.memory.kv import PagedKV

BLOCK = 8
OF_SEQUENCE = (1, 0, 2, 3, 1, 2)  # which adapter each sequence has, 0 for none
RANKS = (3, 17, 64)
DENSE: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (ATTENTION, ()),
    (("k_proj", "up_proj", "down_proj"), ()),
    ((*ATTENTION, *MLP), ()),
)
CASES = {
    "llama": DENSE,
    "qwen3": DENSE,
    "qwen3_moe": ((ATTENTION, EXPERTS), ((), EXPERTS[:1]), (("v_proj", "o_proj"), EXPERTS[1:])),
    "mixtral": ((ATTENTION, EXPERTS), ((), EXPERTS[1:]), ((), EXPERTS)),
}


def _model(family: str) -> PreTrainedModel:
    if family != "llama":
        return served_model(family)
    torch.manual_seed(0)
    config = AutoConfig.for_model(  # 96 keys, 160 columns of an MLP: no multiples of a panel's 64
        "llama",
        vocab_size=300,
        hidden_size=192,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=128,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@dataclass
class Case:
    """A model, its adapters, and the model with each one merged, the first being none."""

    model: PreTrainedModel
    targets: Targets
    adapters: list[Adapter]
    references: list[PreTrainedModel]


def _case(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Case:
    model = _model(family)
    targets = find_targets(model)
    adapters, references = [], [model]
    for seed, (modules, parameters) in enumerate(CASES[family]):
        made = save_adapter(
            folder / f"{seed}",
            model,
            rank=RANKS[seed],
            modules=modules,
            parameters=parameters,
            seed=seed,
        )
        adapters.append(read_adapter(made, targets, max_rank=64, dtype=dtype))
        references.append(merged(model, made))
    return Case(model, targets, adapters, references)


def _kv(model: PreTrainedModel) -> PagedKV:
    return PagedKV(
        adopt(model), num_blocks=64, block_tokens=BLOCK, dtype=model.dtype, device=model.device
    )


def _steps() -> list[tuple[list[Piece], list[int], list[int]]]:
    """Pieces, those that are sampled, each one's adapter: prompts, a mixed step, decoding. Pieces
    of one token are first, as the model's own code wants it."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 300, (6, 100), generator=generator).tolist()
    blocks = torch.randperm(64, generator=generator).tolist()

    def step(
        cuts: Sequence[tuple[int, int, int]], sampled: list[int]
    ) -> tuple[list[Piece], list[int], list[int]]:
        pieces = [
            Piece(tokens[s][a:b], a, blocks[s * 10 : s * 10 + -(-b // BLOCK)]) for s, a, b in cuts
        ]
        return pieces, sampled, [OF_SEQUENCE[s] for s, _, _ in cuts]

    return [
        step([(3, 0, 1), (0, 0, 40), (1, 0, 20), (2, 0, 7), (4, 0, 33)], [0, 2, 4]),
        step([(4, 33, 34), (0, 40, 41), (1, 20, 21), (5, 0, 75), (3, 1, 6)], [0, 1, 3, 4]),
        step([(s, n, n + 1) for s, n in enumerate((41, 21, 7, 6, 34, 75))], [0, 1, 2, 3, 4, 5]),
    ]


class Mixed:
    """The compiled forward with the adapters of a case, all in their slots."""

    def __init__(self, case: Case, model: PreTrainedModel, threads: int) -> None:
        self.case = case
        slots = Slots(3, 64)
        self.layers = AdapterLayers(
            model, case.targets, slots.rows, dtype=model.dtype, device=model.device
        )
        self.forward = CompiledForward(model, _kv(model), positions=128, threads=threads)
        self.adapted = CompiledAdapted(self.forward, model, self.layers)
        self.places: list[Place | None] = [None]
        for adapter in case.adapters:
            taken = slots.take(adapter.digest, adapter.rank)
            assert taken is not None
            self.places.append(taken[0])

    def fill(self, number: int, place: Place) -> None:
        adapter = self.case.adapters[number]
        self.layers.attach(tuple(adapter.changes))
        for layer in range(NO_LAYER, self.case.targets.num_layers):
            self.layers.write(place, adapter, layer)

    def fill_all(self) -> None:
        for number, place in enumerate(self.places[1:]):
            assert place is not None
            self.fill(number, place)

    def logits(self, late: Sequence[int] = (), assistant: Assistant | None = None) -> torch.Tensor:
        """``late``: adapters that are said to be on their way; those with an ``assistant`` have
        all still to come."""
        arrivals = {}
        for number in late:
            place = self.places[number]
            assert place is not None
            digest = self.case.adapters[number - 1].digest
            arrivals[place] = Arrival(digest, self.case.targets.num_layers, assistant)
            if assistant is None:
                arrivals[place].landed(self.case.targets.num_layers)
        found = []
        for pieces, sampled, which in _steps():
            runs = [
                (len(piece.tokens), self.places[number])
                for piece, number in zip(pieces, which, strict=True)
            ]
            found.append(self.adapted(pieces, sampled, runs, arrivals))
        return torch.cat(found).float()


def _expected(case: Case) -> torch.Tensor:
    """Each row from the merged model of its own adapter."""
    every = []
    for model in case.references:
        forward = HuggingFaceForward(model, _kv(model))
        every.append(torch.cat([forward(pieces, sampled) for pieces, sampled, _ in _steps()]))
    which = [number for _, sampled, of in _steps() for number in (of[at] for at in sampled)]
    return torch.stack([every[number][row] for row, number in enumerate(which)])


@pytest.mark.parametrize("family", CASES)
def test_mixed_steps_are_those_of_merged_models(family: str, tmp_path: Path) -> None:
    """Ranks of 3, 17 and 64, each of other projections, beside rows that have none; in slots that
    larger adapters of other projections had before."""
    case = _case(family, tmp_path)
    mixed = Mixed(case, case.model, threads=3)
    assert mixed.places[1] is not None and mixed.places[2] is not None
    mixed.fill(0, mixed.places[1])
    mixed.logits()  # the others' slots are empty, and only some projections have any
    mixed.fill(1, mixed.places[2])
    mixed.fill_all()
    expected = _expected(case)
    base = HuggingFaceForward(case.model, _kv(case.model))
    plain = torch.cat([base(pieces, sampled) for pieces, sampled, _ in _steps()])
    scale = float(expected.abs().max())
    which = torch.tensor([of[at] for _, sampled, of in _steps() for at in sampled])
    assert float((plain - expected)[which > 0].abs().amax(1).min()) > 0.01 * scale
    for late in ((), (2,), (1, 3)):
        got = mixed.logits(late)
        assert float((got - expected).abs().max()) < 1e-4 * scale, late


def test_the_host_computes_what_is_not_there(tmp_path: Path) -> None:
    """Of adapters of unlike projections, of two at once, whose slots are empty all the time."""
    case = _case("llama", tmp_path)
    mixed = Mixed(case, case.model, threads=1)
    host = HostAssistants(
        2, rows=200, width=768, dtype=torch.float32, rows_each=16, cores=frozenset()
    )
    try:
        for adapter in case.adapters:
            mixed.layers.attach(tuple(adapter.changes))
            host.hold(adapter)
        assert mixed.places[2] is not None
        mixed.fill(1, mixed.places[2])
        expected = _expected(case)
        got = mixed.logits((1, 3), host)
        assert host.alive
    finally:
        host.close()
    assert float((got - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("family", ["llama"])
def test_bfloat16_is_as_near_to_float32_as_the_models_own(family: str, tmp_path: Path) -> None:
    case = _case(family, tmp_path, torch.bfloat16)
    exact = torch.log_softmax(_expected(case), -1)
    model = case.model.to(torch.bfloat16)
    mixed = Mixed(case, model, threads=2)
    mixed.fill_all()
    own = []
    plain = HuggingFaceForward(model, _kv(model))
    for pieces, sampled, which in _steps():
        runs = [(len(p.tokens), mixed.places[n]) for p, n in zip(pieces, which, strict=True)]
        with mixed.layers.step(runs):
            own.append(plain(pieces, sampled))
    errors = [
        float((torch.log_softmax(logits, -1) - exact).abs().mean())
        for logits in (mixed.logits(), torch.cat(own).float())
    ]
    assert errors[0] < 1.2 * errors[1]


def test_an_adapter_of_smaller_rank_takes_over_a_slot(tmp_path: Path) -> None:
    """Of the larger one that was there, of all projections, nothing is left."""
    case = _case("llama", tmp_path)
    mixed = Mixed(case, case.model, threads=1)
    at = mixed.places[3]
    assert at is not None
    mixed.fill(2, at)
    pieces, sampled, _ = _steps()[0]
    runs = [(len(piece.tokens), at) for piece in pieces]
    mixed.adapted(pieces, sampled, runs, {})
    for number in (1, 0):
        mixed.fill(number, at)
        reference = case.references[number + 1]
        expected = HuggingFaceForward(reference, _kv(reference))(pieces, sampled)
        got = mixed.adapted(pieces, sampled, runs, {})
        assert float((got - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_slots_and_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    case = _case("llama", tmp_path)
    mixed = Mixed(case, case.model, threads=1)
    mixed.fill_all()
    piece = Piece([1, 2], 0, [3])
    with pytest.raises(IndexError, match="lies beyond 192 packed rows"):
        mixed.adapted([piece], [0], [(2, Place(192, 64))], {})
    with pytest.raises(IndexError, match="adapters of 3 of 2 tokens"):
        mixed.adapted([piece], [0], [(3, Place(0, 64))], {})
    assert torch.equal(
        mixed.adapted([piece], [0], [(2, None)], {}), mixed.forward([piece], [0])
    )  # and nothing of them stays

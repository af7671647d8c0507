from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serving.engine.sampler import Row, sample
from serving.request import Sampling


def _row(
    row: int = 0, *, seed: int = 0, index: int = 0, position: int = 0, **sampling: object
) -> Row:
    return Row(row, Sampling(max_tokens=9, **sampling), seed, index, position, (), ())  # type: ignore[arg-type]


def _share(logits_V: torch.Tensor, draws: int = 4000, **sampling: object) -> dict[int, float]:
    rows = [_row(position=p, **sampling) for p in range(draws)]
    counts = Counter(sample(logits_V[None], rows).tokens)
    return {token: count / draws for token, count in counts.items()}


@pytest.mark.parametrize(
    ("sampling", "warper"),
    [
        ({"top_k": 3}, TopKLogitsWarper(3)),
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
        ({"temperature": 0.5}, None),
        ({}, None),
    ],
)
def test_shares_are_those_of_transformers(sampling: dict[str, float], warper: object) -> None:
    logits_V = torch.tensor([0.3, 2.0, -1.0, 1.2, 1.9, -3.0])
    expected = logits_V[None] / sampling.get("temperature", 1.0)
    if callable(warper):
        expected = warper(torch.zeros(1, 1, dtype=torch.long), expected)
    shares = _share(logits_V, **sampling)
    for token, share in enumerate(torch.softmax(expected[0], -1).tolist()):
        # Five standard deviations of a share over 4000 draws.
        assert shares.get(token, 0.0) == pytest.approx(share, abs=5 * (share / 4000) ** 0.5)


def test_chance_is_an_answers_own() -> None:
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(0))
    alone = [sample(logits_V[None], [_row(seed=7, position=p)]).tokens[0] for p in range(20)]
    crowd = [_row(seed=s, top_k=5 if s % 2 else 0) for s in range(20, 30)]
    among = [
        sample(logits_V[None], [*crowd, _row(seed=7, position=p)]).tokens[-1] for p in range(20)
    ]
    assert alone == among
    other = [sample(logits_V[None], [_row(seed=8, position=p)]).tokens[0] for p in range(20)]
    second = [
        sample(logits_V[None], [_row(seed=7, index=1, position=p)]).tokens[0] for p in range(20)
    ]
    assert alone != other and alone != second


def test_penalties_bias_and_bans_by_hand() -> None:
    logits_V = torch.tensor([2.0, 1.9, -1.0, 0.0])

    def chosen(prompt: tuple[int, ...], answer: tuple[int, ...], **sampling: object) -> int:
        s = Sampling(max_tokens=9, temperature=0.0, **sampling)  # type: ignore[arg-type]
        return sample(logits_V[None], [Row(0, s, 0, 0, 0, prompt, answer)]).tokens[0]

    assert chosen((0,), ()) == 0
    assert chosen((0,), (), presence_penalty=1.0) == 0  # of the answer alone
    assert chosen((), (0,), presence_penalty=0.2) == 1
    assert chosen((), (0, 1, 1), frequency_penalty=0.2) == 0  # 1.8 and 1.5
    assert chosen((), (0, 0, 0, 1), frequency_penalty=0.1) == 1  # 1.7 and 1.8
    assert chosen((), (), logit_bias={3: 2.1}) == 3
    assert chosen((), (), logit_bias={0: -100.0}) == 1
    banned = Row(0, Sampling(max_tokens=9, temperature=0.0), 0, 0, 0, (), (), banned=(0, 1))
    assert sample(logits_V[None], [banned]).tokens == [3]

    seen = torch.tensor([[0, 2]])
    expected = RepetitionPenaltyLogitsProcessor(1.5)(seen, logits_V[None].clone())
    assert chosen((0,), (2,), repetition_penalty=1.5) == int(expected.argmax())


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits_RV = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    rows = [
        _row(0, logprobs=2, temperature=0.0, logit_bias={4: 100.0}),
        _row(2),
        _row(1, logprobs=0, temperature=3.0),
    ]
    sampled = sample(logits_RV, rows)
    log_RV = torch.log_softmax(logits_RV, -1)
    biased, none, plain = sampled.logprobs
    assert sampled.tokens[0] == 4 and biased is not None and biased.token == 4
    assert biased.logprob == pytest.approx(float(log_RV[0, 4]))
    values, tokens = log_RV[0].topk(2)
    assert [token for token, _ in biased.top] == tokens.tolist()
    assert [value for _, value in biased.top] == pytest.approx(values.tolist())
    assert none is None
    assert plain is not None and plain.top == ()
    assert plain.logprob == pytest.approx(float(log_RV[1, sampled.tokens[2]]))

"""Which of several answers are the best, by hand."""

from __future__ import annotations

from serving.api.answers import Whole, best
from serving.request import TokenLogprobs


def whole(index: int, *logprobs: float) -> Whole:
    tokens = tuple(TokenLogprobs(7, logprob) for logprob in logprobs)
    return Whole(index, f"answer {index}", (), tokens, "stop")


CHOICES = [
    whole(0, -2.0, -2.0),
    whole(1, -1.0, -1.5, -1.0, -1.0),  # less likely as a whole than the first, but not by token
    whole(2),  # of nothing nothing is known
    whole(3, -0.5),
    whole(4, -0.1, -0.1),
    whole(5, -0.4),
]


def test_the_best_are_those_with_the_likeliest_tokens_of_each_prompt() -> None:
    found = best(CHOICES, of=3, keep=2)
    assert [choice.text[-1] for choice in found] == ["1", "0", "4", "5"]
    assert [choice.index for choice in found] == [0, 1, 2, 3]


def test_all_of_them_stay_as_they_are() -> None:
    assert best(CHOICES, of=3, keep=3) == CHOICES

from __future__ import annotations

import pytest

from hecate.checkpoint.names import (
    dense_key,
    describe,
    expert_key,
    has_one_owner,
    optimizer_key,
    rng_key,
)

EXPERT = expert_key("model.layers.0.mlp.experts", 3)


def test_keys_are_spelt_as_documented() -> None:
    assert dense_key("model.norm.weight") == "dense/model.norm.weight"
    assert EXPERT == "expert/model.layers.0.mlp.experts/3"
    assert (
        optimizer_key(EXPERT, "exp_avg") == "optimizer/expert/model.layers.0.mlp.experts/3/exp_avg"
    )
    assert rng_key(2) == "rng/2"


@pytest.mark.parametrize(
    ("key", "words", "one_owner"),
    [
        (EXPERT, "expert 3 of model.layers.0.mlp.experts", True),
        (
            optimizer_key(EXPERT, "exp_avg"),
            "exp_avg of expert 3 of model.layers.0.mlp.experts",
            True,
        ),
        (dense_key("model.norm.weight"), "model.norm.weight", False),
        (
            optimizer_key(dense_key("model.norm.weight"), "exp_avg_sq"),
            "exp_avg_sq of model.norm.weight",
            False,
        ),
        (rng_key(1), "rng/1", False),
    ],
)
def test_keys_in_words_and_who_may_hold_them(key: str, words: str, one_owner: bool) -> None:
    assert describe(key) == words
    assert has_one_owner(key) is one_owner

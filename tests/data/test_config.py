"""What the data configuration accepts."""

import pytest
from pydantic import ValidationError

from hecate.data.config import DataConfig, TokenizerConfig


def test_defaults_read_the_standard_library():
    config = DataConfig()
    assert (config.path, config.text_fields, config.tokenizer) == (
        "stdlib",
        ("text",),
        TokenizerConfig(),
    )


def test_text_fields_are_separated_by_commas():
    assert DataConfig(text_field="question, answer").text_fields == ("question", "answer")


@pytest.mark.parametrize(
    "settings",
    [
        {"path": ""},
        {"text_field": ""},
        {"text_field": "a,,b"},
        {"held_out": 0.0},
        {"held_out": 0.9},
        {"max_bytes": -1},
        {"sequence_tokens": 1},
        {"tokenizer": {"vocab_size": 256}},
        {"paht": "stdlib"},
    ],
)
def test_values_that_cannot_stand_are_refused(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        DataConfig(**settings)

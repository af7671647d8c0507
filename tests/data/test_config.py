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


def test_chat_says_how_long_conversations_are_treated():
    assert DataConfig().too_long == "split"
    assert DataConfig(kind="chat", path="chats").too_long == "drop"
    config = DataConfig(kind="chat", path="chats", chat={"too_long": "truncate"})
    assert config.too_long == "truncate"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chat": {"system": "x"}}, "set kind to chat"),
        ({"kind": "chat"}, "path stdlib is text"),
        ({"kind": "chat", "path": "x", "text_field": "body"}, "set chat.fields"),
        ({"kind": "chat", "path": "x", "chat": {"fields": {"user": "q"}}}, "both a field for"),
        ({"kind": "chat", "path": "x", "chat": {"fields": {"system": "q"}}}, "both a field for"),
        ({"kind": "chats", "path": "x"}, "kind"),
    ],
)
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        DataConfig(**settings)

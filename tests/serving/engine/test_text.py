from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from serving.engine.build import decoder
from serving.engine.text import TextPieces

TOKENIZER = byte_tokenizer()
DECODE = decoder(TOKENIZER)


def _ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


class _Shouting(PreTrainedTokenizerFast):
    def _decode(self, *args: object, **kwargs: object) -> str:
        return super()._decode(*args, **kwargs).upper()


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked() -> None:
    shouting = _Shouting(tokenizer_object=TOKENIZER.backend_tokenizer)
    assert decoder(shouting)(_ids("a bé")) == "A BÉ"
    assert DECODE(_ids("a bé")) == TOKENIZER.decode(_ids("a bé")) == "a bé"


def test_a_character_goes_out_when_its_last_byte_is_there() -> None:
    ids = _ids("aé🙂b")
    assert len(ids) == 8  # 1 + 2 + 4 + 1 bytes, of which no merge joins any
    pieces = TextPieces(DECODE, ())
    assert [pieces.push(token) for token in ids] == ["a", "", "é", "", "", "", "🙂", "b"]
    assert pieces.finish() == ""


def test_a_character_that_never_becomes_whole_goes_out_at_the_end() -> None:
    pieces = TextPieces(DECODE, ())
    assert [pieces.push(token) for token in _ids("a🙂")[:-1]] == ["a", "", "", ""]
    assert pieces.finish() == "\ufffd"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=8))
def test_pieces_add_up_to_the_whole(answer: str, prompt: str) -> None:
    pieces = TextPieces(DECODE, _ids(prompt))
    text = "".join(pieces.push(token) for token in _ids(answer)) + pieces.finish()
    assert text == answer


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("dog",), "the cat and the "),
        (("cat and", "the dog"), "the "),  # the first that is complete
        (("dog saw the o",), "the cat and the "),  # over five tokens
        (("saw it",), "the cat and the dog saw the other cat"),  # begun twice, never whole
        (("cat", "the cat and"), "the "),
    ],
)
def test_stop_strings_cut_across_tokens_and_nothing_of_them_goes_out(
    stop: tuple[str, ...], text: str
) -> None:
    pieces = TextPieces(DECODE, (), stop)
    out = []
    for token in _ids("the cat and the dog saw the other cat"):
        out.append(pieces.push(token))
        assert text.startswith("".join(out))
        if pieces.stopped:
            break
    assert "".join(out) + pieces.finish() == text


def test_bytes_that_mean_nothing_are_not_held_for_ever() -> None:
    bytes_only = _ids("🙂")[1:2]  # a byte that only goes on with a character
    pieces = TextPieces(DECODE, ())
    text = "".join(pieces.push(random.choice(bytes_only)) for _ in range(20))
    assert len(text) >= 12
    assert text + pieces.finish() == "\ufffd" * 20

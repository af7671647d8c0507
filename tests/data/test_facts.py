"""The yardsticks of the held-out text, against sums by hand and xz itself."""

import lzma
import math
import shutil
import subprocess

import numpy as np
import pytest

from hecate.data.facts import XzSize, held_out_facts, unigram_entropy_nats


def test_entropy_of_known_distributions():
    assert unigram_entropy_nats(np.array([3, 3, 3], dtype=np.uint16)) == 0
    assert unigram_entropy_nats(np.arange(8, dtype=np.uint32)) == pytest.approx(math.log(8))
    quarter = np.array([0, 0, 0, 9], dtype=np.uint16)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert unigram_entropy_nats(quarter) == pytest.approx(expected)


def test_facts_count_what_can_be_predicted():
    tokens = np.array([1, 2, 0, 3, 0], dtype=np.uint16)
    facts = held_out_facts(
        tokens, predicted_tokens=3, documents=2, text_bytes=10, xz_bytes=5, vocab_size=300
    )
    assert (facts.tokens, facts.predicted_tokens, facts.documents) == (5, 3, 2)
    assert facts.xz_bits_per_byte == 4.0


def test_the_size_is_that_of_one_stream_of_all_the_text():
    texts = [f"text number {n} is not much like ä{n * n}\n" * (n % 7) for n in range(300)]
    whole = "".join(texts).encode()
    with XzSize() as xz:
        for first in range(0, 300, 11):
            xz.add(texts[first : first + 11])
        total = xz.total()
    assert (xz.text_bytes, total) == (len(whole), len(lzma.compress(whole, preset=9)))
    if shutil.which("xz"):
        by_xz = subprocess.run(["xz", "-9", "-c"], input=whole, capture_output=True, check=True)
        assert abs(total - len(by_xz.stdout)) < 64  # headers may differ by a few bytes

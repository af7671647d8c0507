"""How long steps take, as linear models that a profile fits (2401.11240, section 5).

There, of a decode step: ``a * rows * largest rank + b`` where every row is padded to the largest
rank (BGMV), ``a * sum of ranks + b`` where none is (MBGMV). A row costs something without an
adapter too, and a prompt the same for each token; so these have a term more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepModel:
    """Seconds. A decode step: ``base + row * rows + rank * ranks``.

    ``ranks``: the sum of its rows' own, or, ``padded``, of the largest for each row; 0 is a row
    without adapter. Prefill: ``base + token * tokens + token_rank * sum(tokens * rank)``. Bringing
    an adapter of some rank from the host to the device, ``load``, and from disk to the host before
    that, ``read``.
    """

    decode_base_s: float
    decode_row_s: float
    decode_rank_s: float
    prefill_base_s: float
    prefill_token_s: float
    prefill_token_rank_s: float
    load_base_s: float
    load_rank_s: float
    read_base_s: float = 0.0
    read_rank_s: float = 0.0
    padded: bool = False

    def decode(self, ranks: Sequence[int]) -> float:
        """One decode step of rows with these ranks, 0 for none."""
        if not ranks:
            return 0.0
        _, rows, work = decode_features(ranks, padded=self.padded)
        return self.decode_base_s + self.decode_row_s * rows + self.decode_rank_s * work

    def prefill(self, prompts: Sequence[tuple[int, int]]) -> float:
        """Of prompts of (tokens, rank), together."""
        if not prompts:
            return 0.0
        _, tokens, work = prefill_features(prompts)
        return (
            self.prefill_base_s + self.prefill_token_s * tokens + self.prefill_token_rank_s * work
        )

    def load(self, rank: int, *, on_host: bool = True) -> float:
        """Until an adapter is on the device, from the host or from disk."""
        read_s = 0.0 if on_host else self.read_base_s + self.read_rank_s * rank
        return read_s + self.load_base_s + self.load_rank_s * rank


def decode_features(ranks: Sequence[int], *, padded: bool) -> tuple[float, float, float]:
    """What a decode step's weights multiply."""
    work = max(ranks) * len(ranks) if padded else sum(ranks)
    return 1.0, float(len(ranks)), float(work)


def prefill_features(prompts: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
    """What a prefill's weights multiply."""
    tokens = sum(count for count, _ in prompts)
    return 1.0, float(tokens), float(sum(count * rank for count, rank in prompts))


Sample = tuple[tuple[float, ...], float]
"""Features, and the seconds that were measured."""


@dataclass(frozen=True)
class Fit:
    """``r2``: the share of the samples' variance that ``weights`` explain."""

    weights: tuple[float, ...]
    r2: float


def fit(samples: Sequence[Sample]) -> Fit:
    """Least squares without negative weights: ``features @ weights`` close to each measured value.

    Coordinate descent on the normal equations; there are three features and a few dozen samples.
    """
    width = len(samples[0][0])
    scale = [max(abs(x[i]) for x, _ in samples) or 1.0 for i in range(width)]
    rows = [[x[i] / scale[i] for i in range(width)] for x, _ in samples]
    gram = [[sum(r[i] * r[j] for r in rows) for j in range(width)] for i in range(width)]
    right = [sum(r[i] * y for r, (_, y) in zip(rows, samples, strict=True)) for i in range(width)]
    weights = [0.0] * width
    for _ in range(2000):
        for i in range(width):
            rest = right[i] - sum(gram[i][j] * weights[j] for j in range(width) if j != i)
            weights[i] = max(0.0, rest / gram[i][i]) if gram[i][i] else 0.0
    found = tuple(weight / scale[i] for i, weight in enumerate(weights))
    return Fit(found, _explained(samples, found))


def _explained(samples: Sequence[Sample], weights: Sequence[float]) -> float:
    mean = sum(y for _, y in samples) / len(samples)
    total = sum((y - mean) ** 2 for _, y in samples)
    left = sum((y - sum(w * v for w, v in zip(weights, x, strict=True))) ** 2 for x, y in samples)
    return 1.0 - left / total if total else float(not left)

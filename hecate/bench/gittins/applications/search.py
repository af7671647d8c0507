"""Search over passages by their words: BM25 (Robertson and Zaragoza, 2009, equation 3.15)."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9]+")
_K1, _B = 1.2, 0.75


@dataclass(frozen=True)
class Passage:
    """``title``: where it is from."""

    title: str
    text: str


def words(text: str) -> list[str]:
    """Lower case, without what is between."""
    return _WORD.findall(text.lower())


class Search:
    """An index of ``passages``, which is made once and does not change."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._counts = [Counter(words(passage.text)) for passage in passages]
        self._lengths = [sum(counts.values()) for counts in self._counts]
        self._mean = max(1.0, sum(self._lengths) / max(1, len(passages)))
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for place, counts in enumerate(self._counts):
            for word in counts:
                self._places[word].append(place)

    def rarity(self, word: str) -> float:
        """The rarer the higher; 0 for what is nowhere."""
        found = len(self._places.get(word, ()))
        if not found:
            return 0.0
        return math.log(1 + (len(self._passages) - found + 0.5) / (found + 0.5))

    def best(self, query: str, count: int) -> list[Passage]:
        """Up to ``count`` passages with words of ``query``, the best first."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in set(words(query)):
            rarity = self.rarity(word)
            for place in self._places.get(word, ()):
                times = self._counts[place][word]
                length = 1 - _B + _B * self._lengths[place] / self._mean
                scores[place] += rarity * times * (_K1 + 1) / (times + _K1 * length)
        order = sorted(scores, key=lambda place: (-scores[place], place))
        return [self._passages[place] for place in order[:count]]

    def keywords(self, text: str, count: int) -> str:
        """The rarest words of ``text`` that are somewhere, to search for; whatever it has else."""
        known = sorted({word for word in words(text)}, key=lambda word: (-self.rarity(word), word))
        return " ".join(known[:count])

"""How a request goes on whose adapter is not on the device: which way is expected to be quickest.

``wait``: load, then run. ``pipeline``: run while layers come, begun so late that none has to be
waited for. ``assist``: run at once, the host computing the shares of layers whose weights are not
there. Which wins depends on prompt, rank, link and what it has to do already (CaraServe 2401.11240,
section 4): so it is estimated, each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor

WAIT, PIPELINE, ASSIST = "wait", "pipeline", "assist"


@dataclass
class Line:
    """``base + slope * x`` seconds, as measured: up to ``small`` it is ``base`` that tells, beyond
    it ``slope``. The newest counts a fifth."""

    base: float
    slope: float
    small: float

    def __call__(self, x: float) -> float:
        return self.base + self.slope * x

    def measured(self, x: float, seconds: float) -> None:
        if x <= self.small:
            self.base += 0.2 * (max(0.0, seconds - self.slope * x) - self.base)
        else:
            self.slope += 0.2 * (max(0.0, seconds - self.base) / x - self.slope)


@dataclass
class ColdCosts:
    """Measured as the engine goes; seconds.

    ``load_s``: of an adapter. ``layer``: of the model's own, by tokens in a step. ``host``: that a
    step is held up by the host's share of one projection, by rows times rank.
    """

    load_s: float = 0.02
    layer: Line = field(default_factory=lambda: Line(1e-3, 1e-5, small=4))
    host: Line = field(default_factory=lambda: Line(1e-4, 1e-8, small=64))

    def loaded(self, seconds: float) -> None:
        self.load_s += 0.2 * (seconds - self.load_s)

    def estimates(
        self,
        tokens: int,
        rank: int,
        layers: int,
        projections: int,
        *,
        assisted: bool,
        before: int = 0,
    ) -> dict[str, float]:
        """Seconds until the prompt is computed, by each way that is open.

        ``projections``: how many of each layer the adapter changes. ``before``: so many adapters
        are loaded first.
        """
        layer_s = self.layer(tokens)
        queued_s = before * self.load_s
        found = {WAIT: queued_s + self.load_s + layers * layer_s}
        found[PIPELINE] = self._through(layers, layer_s, queued_s, None)
        if assisted:
            share_s = projections * self.host(tokens * rank)
            found[ASSIST] = self._through(layers, layer_s, queued_s, share_s)
        return found

    def _through(
        self, layers: int, layer_s: float, queued_s: float, share_s: float | None
    ) -> float:
        """Layer after layer; one that is not there is waited for, or costs ``share_s`` more."""
        now_s = 0.0
        for layer in range(layers):
            there_s = queued_s + self.load_s * (layer + 1) / layers
            if share_s is None:
                now_s = max(now_s, there_s) + layer_s
            else:
                now_s += layer_s + (share_s if there_s > now_s else 0.0)
        return now_s

    def choose(
        self,
        tokens: int,
        rank: int,
        layers: int,
        projections: int,
        *,
        assisted: bool,
        before: int = 0,
    ) -> str:
        """The quickest; the simpler one where they are equal."""
        found = self.estimates(tokens, rank, layers, projections, assisted=assisted, before=before)
        return min(found, key=lambda way: (found[way], (WAIT, PIPELINE, ASSIST).index(way)))

    def ahead(self, tokens: int, layers: int) -> int:
        """How many layers have to be there before a prompt is begun.

        A step that waits for layers holds up everyone in it, and begun with the first one it ends
        no sooner than begun with these: from here on, less than one layer's time is waited for.
        """
        behind = (layers - 1) * self.layer(tokens) / (self.load_s / layers)
        return max(1, floor(layers - behind))

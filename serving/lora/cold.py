"""How a request goes on whose adapter is not on the device: which way is expected to be quickest.

``wait``: load, then run. ``pipeline``: run at once, each layer waiting for its weights. ``assist``:
run at once, the host computing the shares of layers whose weights are not there. Which wins depends
on prompt, rank and link (CaraServe 2401.11240, section 4): so it is estimated, each time.
"""

from __future__ import annotations

from dataclasses import dataclass

WAIT, PIPELINE, ASSIST = "wait", "pipeline", "assist"


@dataclass
class ColdCosts:
    """Measured as the engine goes; seconds. ``update`` functions take the newest by a fifth."""

    load_s: float = 0.02  # of an adapter, as the last ones took
    layer_token_s: float = 1e-5  # the model's own, of one token in one layer
    call_s: float = 1e-4  # handing one projection's rows to the host and back
    call_row_rank_s: float = 1e-8

    def loaded(self, seconds: float) -> None:
        self.load_s += 0.2 * (seconds - self.load_s)

    def stepped(self, seconds: float, tokens: int, layers: int) -> None:
        """A step without arriving adapters took so long."""
        self.layer_token_s += 0.2 * (seconds / (tokens * layers) - self.layer_token_s)

    def estimates(
        self, tokens: int, rank: int, layers: int, projections: int, *, assisted: bool
    ) -> dict[str, float]:
        """Seconds until the prompt is computed, by each way that is open.

        ``projections``: how many of each layer the adapter changes.
        """
        layer_s = self.layer_token_s * tokens
        found = {WAIT: self.load_s + layers * layer_s}
        found[PIPELINE] = self._through(layers, layer_s, None)
        if assisted:
            share_s = projections * (self.call_s + self.call_row_rank_s * tokens * rank)
            found[ASSIST] = self._through(layers, layer_s, share_s)
        return found

    def _through(self, layers: int, layer_s: float, share_s: float | None) -> float:
        """Layer after layer; one that is not there is waited for, or costs ``share_s`` more."""
        now_s = 0.0
        for layer in range(layers):
            there_s = self.load_s * (layer + 1) / layers
            waited_s = max(now_s, there_s) + layer_s
            now_s = waited_s if share_s is None else min(waited_s, now_s + layer_s + share_s)
        return now_s

    def choose(
        self, tokens: int, rank: int, layers: int, projections: int, *, assisted: bool
    ) -> str:
        """The quickest; the simpler one where they are equal."""
        found = self.estimates(tokens, rank, layers, projections, assisted=assisted)
        return min(found, key=lambda way: (found[way], (WAIT, PIPELINE, ASSIST).index(way)))

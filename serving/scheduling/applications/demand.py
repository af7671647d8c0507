"""What work costs, in seconds of the device."""

from __future__ import annotations

from dataclasses import dataclass

from serving.scheduling.applications.traces import Call


@dataclass(frozen=True)
class Rates:
    """``prefill_token_s``, ``decode_token_s``: of the device, for one token; ``pace_s``: from one
    token of an answer to the next, which it shares with the others that decode beside it."""

    prefill_token_s: float = 1e-4
    decode_token_s: float = 2e-3
    pace_s: float = 0.06

    def work_s(self, call: Call) -> float:
        """Of the device."""
        fresh = call.prompt_tokens - call.cached_tokens
        return self.prefill_token_s * fresh + self.decode_token_s * call.output_tokens

    def alone_s(self, call: Call) -> float:
        """From its arrival to its answer, if it waits for nobody."""
        fresh = call.prompt_tokens - call.cached_tokens
        return self.prefill_token_s * fresh + self.pace_s * call.output_tokens

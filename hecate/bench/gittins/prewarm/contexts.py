"""Keys and values that an application computed and comes back for: on the device as far as there is
room beside what runs, and in the host's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from hecate.bench.gittins.prewarm.adapters import LLM
from hecate.bench.gittins.prewarm.claims import Shapes, chance, claimed
from hecate.bench.gittins.prewarm.served import Application, NoWatcher
from serving.scheduling.applications.traces import Call
from serving.scheduling.prewarm.config import PrewarmConfig
from serving.scheduling.prewarm.keeping import Claim, Kept, keeping_order


@dataclass(frozen=True)
class ContextSizes:
    """Tokens that fit."""

    device: int
    host: int


class Contexts(NoWatcher):
    """An application's context, in tokens, is what its last unit read and wrote; its next unit
    comes back for it. What is left of it by then counts, unit by unit; a part that is gone is lost
    with all after it, but not what is before.
    """

    def __init__(
        self,
        rule: str,
        sizes: ContextSizes,
        shapes: Shapes,
        config: PrewarmConfig,
        *,
        measured_from: int,
    ) -> None:
        self._rule = rule
        self._sizes = sizes
        self._shapes = shapes
        self._config = config
        self._measured_from = measured_from
        self._kept: OrderedDict[int, int] = OrderedDict()  # tokens, by application; unused first
        self._whole: dict[int, int] = {}
        self._running = 0
        self._wanted: list[Kept] = []
        self._seen: set[tuple[int, int]] = set()
        self.units = 0
        self.hits = 0.0
        self.tokens = self.hit_tokens = 0

    def look(self, applications: Sequence[Application], now_s: float) -> None:
        self._wanted = claimed(
            self._rule,
            applications,
            lambda a: chance(a, "", LLM, self._shapes, self._config, 1.0, now_s),
            self._config.threshold,
            lambda a: str(a.number),
        )
        self._fit()

    def start(self, application: Application, call: Call, now_s: float) -> float | None:
        number, unit = application.number, (application.number, application.place)
        if unit not in self._seen:
            self._seen.add(unit)
            whole = self._whole.pop(number, 0)
            kept = self._kept.pop(number, 0)
            if whole and number >= self._measured_from:
                self.units += 1
                self.hits += kept / whole
                self.tokens += whole
                self.hit_tokens += kept
        self._running += _tokens(call)
        self._fit()
        return 0.0

    def end(self, application: Application, call: Call, now_s: float) -> None:
        self._running -= _tokens(call)
        number = application.number
        self._whole[number] = self._whole.get(number, 0) + _tokens(call)
        self._kept[number] = self._kept.get(number, 0) + _tokens(call)
        self._kept.move_to_end(number)  # where it was computed: nobody has to go for it yet

    def over(self, application: Application, now_s: float) -> None:
        """What it leaves stays until it has to go, before all that somebody claims."""
        self._shapes.over(application.live.key)
        self._wanted = [each for each in self._wanted if each.key != str(application.number)]

    def _fit(self) -> None:
        room = max(0, self._sizes.device - self._running) + self._sizes.host
        over = sum(self._kept.values()) - room
        if over <= 0:
            return
        kept = [Kept(str(number), Claim.NONE, 0.0, use) for use, number in enumerate(self._kept)]
        for key in reversed(keeping_order([*self._wanted, *kept])):
            number = int(key)
            gone = min(over, self._kept.get(number, 0))
            if gone:
                self._kept[number] -= gone
                over -= gone
            if over <= 0:
                return


def _tokens(call: Call) -> int:
    return call.prompt_tokens + call.output_tokens

"""The next request, drawn by chance, and what may come of it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hecate.bench.soak.bad import BAD, SERVED, Bad
from hecate.bench.soak.checks import Check, Choice, Wanted
from hecate.bench.soak.references import ANSWER_TOKENS, BASE, MODEL, References

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
LONG_TOKENS = 300
SCHEMA = {
    "type": "object",
    "properties": {
        "fine": {"type": "boolean"},
        "kind": {"enum": ["red", "green", "blue"]},
    },
    "required": ["fine", "kind"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ask:
    """One HTTP request. ``adapter``: the name that it asks for, "" for the model itself.

    Its client leaves: after ``leave_s`` without an answer, or after ``leave_events`` of a stream;
    0 for neither.
    """

    what: str
    path: str
    body: Mapping[str, Any] | bytes
    wanted: Wanted
    key: str
    method: str = "POST"
    adapter: str = ""
    leave_s: float = 0.0
    leave_events: int = 0


class Asks:
    """``names``: of adapters that come and go; ``keys``: of tenants without a quota; ``poor``: of
    one that soon has used its own."""

    def __init__(
        self,
        references: References,
        draw: random.Random,
        *,
        names: Sequence[str],
        keys: Sequence[str],
        poor: str,
    ) -> None:
        self._references = references
        self._draw = draw
        self._names = names
        self._keys = keys
        self._poor = poor
        self._kinds: Mapping[Callable[[], Ask], float] = {
            self.greedy: 30,
            self._of_an_adapter: 25,
            self._stopped: 8,
            self._form: 6,
            self._sampled: 8,
            self._embedding: 3,
            self._leaves_early: 5,
            self._leaves_midway: 6,
            self.bad: 6,
            self._over_quota: 3,
        }

    def next(self) -> Ask:
        (kind,) = self._draw.choices(list(self._kinds), list(self._kinds.values()))
        return kind()

    def greedy(self, adapter: str = "") -> Ask:
        """Of a prompt whose answer is known."""
        draw = self._draw
        tokens = draw.randint(8, ANSWER_TOKENS)
        body: dict[str, Any] = {"max_tokens": tokens, "n": draw.choice((1, 1, 1, 2, 3))}
        ends = draw.random() < 0.3
        if not ends:
            body["ignore_eos"] = True
        return self._known(adapter, body, tokens, ends=ends)

    def bad(self) -> Ask:
        """One that is to be refused."""
        bad: Bad = self._draw.choice(BAD)
        key = self._key() if bad.key is None else bad.key
        wanted = Wanted(statuses=frozenset({bad.status}))
        return Ask(f"bad: {bad.what}", bad.path, bad.body, wanted, key, method=bad.method)

    def long(self, leave_s: float) -> Ask:
        """An answer that takes long, and whose client leaves."""
        prompt = self._draw.choice(self._references.prompts)
        body = {
            "model": SERVED,
            "prompt": list(prompt.tokens),
            "max_tokens": LONG_TOKENS,
            "ignore_eos": True,
            "stream": self._draw.random() < 0.5,
        }
        wanted = Wanted(check=lambda choices, contents: "")
        return Ask("leaves early", COMPLETIONS, body, wanted, self._key(), leave_s=leave_s)

    def _of_an_adapter(self) -> Ask:
        return self.greedy(self._draw.choice(self._names))

    def _stopped(self) -> Ask:
        """With a stop string that is in the answer."""
        draw, references = self._draw, self._references
        adapter = draw.choice(("", "", *self._names))
        content = draw.choice(list(references.adapters)) if adapter else BASE
        number = draw.randrange(len(references.prompts))
        text = references.text(number, content, ANSWER_TOKENS)
        at = draw.randrange(3, len(text) - 3)
        stop = text[at : at + draw.choice((2, 3))]
        if "\ufffd" in stop:  # half a character, which no client sends
            stop = text[:2] if "\ufffd" not in text[:2] else "zzz"
        tokens = draw.randint(16, ANSWER_TOKENS)
        body = {"max_tokens": tokens, "ignore_eos": True, "stop": draw.choice((stop, [stop]))}
        return replace(self._known(adapter, body, tokens, stop=stop, number=number), what="stop")

    def _known(
        self,
        adapter: str,
        more: Mapping[str, Any],
        tokens: int,
        *,
        stop: str = "",
        ends: bool = False,
        number: int = -1,
    ) -> Ask:
        draw, references = self._draw, self._references
        if number < 0:
            number = draw.randrange(len(references.prompts))
        prompt = references.prompts[number]
        n = int(more.get("n", 1))
        body = {
            "model": f"{SERVED}:{adapter}" if adapter else SERVED,
            "temperature": 0,
            "priority": draw.choice((0, 0, 0, -1, 1)),
            **more,
        }
        logprobs = not stop and not ends and draw.random() < 0.15
        if prompt.messages:
            body["messages"] = list(prompt.messages)
            if logprobs:
                body |= {"logprobs": True, "top_logprobs": 3}
        else:
            body["prompt"] = list(prompt.tokens)
            if logprobs:
                body["logprobs"] = 2
        usage = self._stream(body)
        check = self._check(number, tokens, stop, ends, tokens if logprobs else 0)
        return Ask(
            f"{'chat' if prompt.messages else 'completion'}"
            f"{', streamed' if body.get('stream') else ''}{', adapter' if adapter else ''}",
            CHAT if prompt.messages else COMPLETIONS,
            body,
            Wanted(check, n, usage=usage, chat=bool(prompt.messages)),
            self._key(),
            adapter=adapter,
        )

    def _check(self, number: int, tokens: int, stop: str, ends: bool, logprobs: int) -> Check:
        references = self._references

        def check(choices: Sequence[Choice], contents: Collection[str]) -> str:
            found = {(choice.text, choice.finish) for choice in choices}
            if any(choice.tokens != logprobs for choice in choices):
                return f"logprobs of {choices[0].tokens} tokens, not {logprobs}"

            def fits(content: str) -> bool:
                one = references.expected(number, content, tokens, stop=stop, ends=ends)
                return found == {(one.text, one.finish)}

            if any(fits(content) for content in contents):
                return ""
            others = [each for each in (BASE, *references.adapters) if fits(each)]
            wanted = ", ".join(sorted(contents)) or "nobody"
            if others:
                return f"the answer of {others[0]}, where it was to be that of {wanted}"
            one = references.expected(number, next(iter(contents), BASE), tokens, stop=stop)
            return f"prompt {number}: {sorted(found)!r:.300}, not {one!r:.300}"

        return check

    def _form(self) -> Ask:
        """An answer that keeps to a schema."""
        n = self._draw.choice((1, 1, 2))
        body: dict[str, Any] = {
            **self._chat(),
            "n": n,
            "max_tokens": 400,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "form", "schema": SCHEMA},
            },
        }
        usage = self._stream(body)
        wanted = Wanted(keeps_to_schema, n, usage=usage, chat=True)
        return Ask("schema", CHAT, body, wanted, self._key())

    def _sampled(self) -> Ask:
        draw = self._draw
        n = draw.choice((1, 2, 4))
        body: dict[str, Any] = {
            **self._chat(),
            "n": n,
            "max_tokens": draw.randint(1, ANSWER_TOKENS),
            "temperature": draw.choice((0.5, 1.0, 1.7)),
            "top_p": draw.choice((1.0, 0.9)),
            "top_k": draw.choice((0, 20)),
            "min_p": draw.choice((0.0, 0.05)),
            "presence_penalty": draw.choice((0.0, 0.7)),
            "repetition_penalty": draw.choice((1.0, 1.2)),
            "seed": draw.randrange(1 << 31),
            "logit_bias": {"7": -100, "9": 3},
        }
        usage = self._stream(body)
        wanted = Wanted(lambda choices, contents: "", n, usage=usage, chat=True)
        return Ask("sampled", CHAT, body, wanted, self._key())

    def _embedding(self) -> Ask:
        prompt = self._draw.choice(self._references.prompts)
        body = {"model": SERVED, "input": list(prompt.tokens)}
        return Ask("embedding", EMBEDDINGS, body, Wanted(whole=_unit_vector), self._key())

    def _leaves_early(self) -> Ask:
        return self.long(self._draw.uniform(0.001, 0.15))

    def _leaves_midway(self) -> Ask:
        ask = self.long(0.0)
        assert isinstance(ask.body, Mapping)
        body = {**ask.body, "stream": True}
        events = self._draw.randint(1, 40)
        return replace(ask, what="leaves midway", body=body, leave_events=events)

    def _over_quota(self) -> Ask:
        return replace(self.greedy(), what="over quota", key=self._poor)

    def _chat(self) -> dict[str, Any]:
        chats = [prompt for prompt in self._references.prompts if prompt.messages]
        return {"model": SERVED, "messages": list(self._draw.choice(chats).messages)}

    def _stream(self, body: dict[str, Any]) -> bool:
        """Have some of them streamed; whether with the usage at the end."""
        if self._draw.random() < 0.4:
            return False
        body["stream"] = True
        usage = self._draw.random() < 0.5
        if usage:
            body["stream_options"] = {"include_usage": True}
        return usage

    def _key(self) -> str:
        return self._draw.choice(self._keys)


def keeps_to_schema(choices: Sequence[Choice], contents: Collection[str]) -> str:
    """What is wrong with answers that are to keep to ``SCHEMA``."""
    for choice in choices:
        try:
            value = json.loads(choice.text)
        except ValueError:
            return f"no JSON ({choice.finish}): {choice.text!r:.200}"
        kinds = ("red", "green", "blue")
        if not isinstance(value, dict) or set(value) != {"fine", "kind"}:
            return f"other fields: {choice.text!r:.200}"
        if not isinstance(value["fine"], bool) or value["kind"] not in kinds:
            return f"other values: {choice.text!r:.200}"
    return ""


def _unit_vector(value: Any) -> str:
    (one,) = value["data"]
    length = math.sqrt(sum(each * each for each in one["embedding"]))
    fine = len(one["embedding"]) == MODEL.sizes["hidden_size"] and abs(length - 1) < 1e-3
    return "" if fine else f"{len(one['embedding'])} numbers, of length {length}"

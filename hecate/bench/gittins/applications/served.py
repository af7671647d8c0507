"""An application's instance on a server, each request and tool told for what it is."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import openai

from serving.client import Instance


class ServedRun:
    """``model``: what the server calls it. Answers are as long as they are asked to be, and always
    the same for the same prompt."""

    def __init__(self, instance: Instance[openai.AsyncOpenAI], model: str) -> None:
        self._instance = instance
        self._model = model
        self.prompt_tokens = self.output_tokens = 0

    async def ask(self, unit: str, prompt: str, tokens: int) -> str:
        answer = await self._instance.completions.create(
            unit=unit,
            model=self._model,
            prompt=prompt,
            max_tokens=tokens,
            temperature=0.0,
            extra_body={"ignore_eos": True},
        )
        self.prompt_tokens += answer.usage.prompt_tokens
        self.output_tokens += answer.usage.completion_tokens
        text = answer.choices[0].text
        assert isinstance(text, str)
        return text

    def tool(self, unit: str, kind: str) -> AbstractAsyncContextManager[None]:
        return self._instance.tool_soon(unit, kind)

"""``hecate generate RUN|HF_FOLDER "prompt"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from transformers.utils.logging import disable_progress_bar

from hecate.train.generate import generate


def command(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN|HF_FOLDER", help="A run's folder or a Hugging Face folder."),
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="How many tokens at most.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time.")
    ] = 0.8,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that make this share.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    chat: Annotated[
        bool, typer.Option(help="Ask the prompt by the chat template, and print the answer.")
    ] = False,
) -> None:
    """Print the prompt, once the model is there, and its continuation as it comes."""
    disable_progress_bar()  # of loading the weights: it would break into the text
    ahead = [f"{prompt}\n" if chat else prompt]

    def show(text: str) -> None:
        print(*ahead, text, sep="", end="", flush=True)
        ahead.clear()

    generate(
        target,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        on_text=show,
        chat=chat,
    )
    print(*ahead)

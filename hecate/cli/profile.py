"""``hecate profile CONFIG|RUN|HF_FOLDER --out FILE``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from hecate.cli.serve import serving_config
from serving.bench.steps import profile
from serving.lora.profile import Profile, write_profile


def command(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|RUN|HF_FOLDER",
            help="What hecate serve gets: a YAML file, a run's folder or a Hugging Face folder.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where it goes: replicas.step_model of the app.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=value", help="Change one value; may be repeated."),
    ] = None,
) -> None:
    """Measure how long steps with adapters take here, so that requests can be placed by that."""
    config = serving_config(target, overrides or [])
    print(f"measuring {config.engine.name}", flush=True)
    found = asyncio.run(profile(config.engine, lambda what: print(f"  {what}", flush=True)))
    write_profile(found, out)
    print(described(found))
    print(f"written to {out}: hecate serve ... --set replicas.step_model={out}")


def described(profile: Profile) -> str:
    """Each model on a line, with the share of what was measured that it explains."""
    steps, r2 = profile.steps, profile.r2
    largest = " (the largest of the batch)" if steps.padded else ""
    lines = (
        ("decode", f"{_ms(steps.decode_base_s)} + {_ms(steps.decode_row_s)} a row", r2.decode),
        ("", f"+ {_ms(steps.decode_rank_s)} a row and rank{largest}", None),
        (
            "prefill",
            f"{_ms(steps.prefill_base_s)} + {_ms(steps.prefill_token_s)} a token",
            r2.prefill,
        ),
        ("", f"+ {_ms(steps.prefill_token_rank_s)} a token and rank", None),
        ("load", f"{_ms(steps.load_base_s)} + {_ms(steps.load_rank_s)} a rank", r2.load),
        ("read", f"{_ms(steps.read_base_s)} + {_ms(steps.read_rank_s)} a rank", r2.read),
    )
    return "\n".join(
        f"{name:8}{text:56}" + ("" if share is None else f"R2 {share:.3f}")
        for name, text, share in lines
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.4g} ms"

"""The table of commands, and what the process says and returns when one of them fails.

This is the boundary file of the command line: it alone imports a command's module by name, and only
the one that runs, so that ``hecate --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from hecate.errors import HecateError, UserError

COMMANDS = {
    "train": "Train a model as CONFIG says; under torchrun, with every rank.",
    "eval": "Evaluate a run's newest checkpoint on its held-out files.",
    "export": "Write a run's newest checkpoint as a Hugging Face folder.",
    "generate": "Continue a prompt with a run or a Hugging Face folder.",
    "doctor": "Say what this machine can run, what is missing and how to get it.",
    "bench": "Measure, print a table and, with --json, write it down.",
}

INTERRUPTED = 130

# torchrun ends the other ranks within a fraction of this once one has failed, so that the same
# message from every rank becomes one message.
OTHER_RANKS_WAIT_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code.

    0 done, 1 a failure of ours or of another rank, 2 something the user can mend, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    rank = int(os.environ.get("RANK", "0"))
    try:
        _app(words)(args=words, prog_name="hecate")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HecateError as error:
        if rank and isinstance(error, UserError):
            time.sleep(OTHER_RANKS_WAIT_S)
        where = f" on rank {rank}" if rank else ""
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("this is a bug in Hecate: please report it with the lines above", file=sys.stderr)
        return 1
    return 0


def _app(words: Sequence[str]) -> typer.Typer:
    """The commands, of which the one that ``words`` names is loaded and the others only listed."""
    app = typer.Typer(
        name="hecate",
        help="Train Mixture-of-Experts models, evaluate them, export them, generate from them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    chosen = next((word for word in words if not word.startswith("-")), "")
    for name, text in COMMANDS.items():
        app.command(name, help=text)(_load(name) if name == chosen else _not_loaded)
    return app


def _load(name: str) -> Callable[..., Any]:
    module = importlib.import_module(f"hecate.cli.{name}")
    command: Callable[..., Any] = module.command
    return command


def _not_loaded() -> None:
    raise AssertionError("a command that was not named on the command line was run")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("hecate"))
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """What may stand before a command."""

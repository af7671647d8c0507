"""The table of commands, and what the process says and returns when one of them fails.

This is the boundary file of the command line: it alone imports a command's module by name, and only
the one that runs, so that ``hecate --help`` does not wait for torch.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from hecate.errors import HecateError, UserError

COMMANDS = {
    "train": "Train a model as CONFIG says; under torchrun, with every rank.",
    "eval": "Evaluate a run's newest checkpoint on its held-out files.",
    "export": "Write a run's newest checkpoint as a Hugging Face folder.",
    "generate": "Continue a prompt with a run or a Hugging Face folder.",
    "serve": "Serve a model behind an OpenAI-compatible API, on Ray Serve.",
    "apps": "Show what a server knows of applications, and who is under way.",
    "profile": "Measure how long steps with adapters take, to place requests by.",
    "plan": "Replay a run's router loads through any policy and draw what each does.",
    "report": "Draw a run as one HTML file: curves, loads, time, events, settings.",
    "memory": "Estimate what a rank of any number of ranks would take, without training.",
    "doctor": "Say what this machine can run, what is missing and how to get it.",
    "simulate": "Predict steps on a described cluster, under every policy.",
    "bench": "Measure, print a table and, with --json, write it down.",
}

INTERRUPTED = 130

# What the user can mend, every rank finds. torchrun ends the other ranks as soon as rank 0 has
# ended, so that they, waiting this long, add nothing to its message.
OTHER_RANKS_WAIT_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return outcome(lambda: _app(words)(args=words, prog_name="hecate"), os.environ)


def outcome(action: Callable[[], object], environment: Mapping[str, str]) -> int:
    """Do ``action``, say on stderr how it failed, and return what the process ends with.

    0 done, 1 a failure of ours or of another rank, 2 something the user can mend, 130 interrupted.
    ``environment`` is what the launcher set: RANK, and torchrun's TORCHELASTIC_ERROR_FILE.
    """
    rank = environment.get("RANK", "0")
    try:
        action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HecateError as error:
        if rank != "0" and isinstance(error, UserError):
            time.sleep(OTHER_RANKS_WAIT_S)
        message = f"error: {error}" if rank == "0" else f"error on rank {rank}: {error}"
        print(message, file=sys.stderr, flush=True)
        _tell_launcher(message, environment.get("TORCHELASTIC_ERROR_FILE", ""))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        message = f"{traceback.format_exc()}this is a bug in Hecate: please report these lines"
        print(message, file=sys.stderr, flush=True)
        _tell_launcher(message, environment.get("TORCHELASTIC_ERROR_FILE", ""))
        return 1
    return 0


def _tell_launcher(message: str, path: str) -> None:
    """Let torchrun repeat ``message`` in the summary with which it ends; ``path`` is its file."""
    if path:
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        report = {"message": {"message": message, "extraInfo": details}}
        with contextlib.suppress(OSError):  # the message is on stderr already
            Path(path).write_text(json.dumps(report), encoding="utf-8")


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
    chosen = next((word for word in words if not word.startswith("-")), "")
    for name, text in COMMANDS.items():
        app.command(name, help=text)(_load(name) if name == chosen else _not_loaded)
    return app


def _load(name: str) -> Callable[..., Any]:
    path = f"hecate.cli.{name}"
    if path not in sys.modules:
        with _nothing_collected():
            importlib.import_module(path)
    command: Callable[..., Any] = sys.modules[path].command
    return command


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Imports make half a million objects, all of which stay.

    To look through them for garbage again and again takes a sixth of the imports' time, and later a
    quarter of a second of a step now and then; frozen, they are never looked through.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _not_loaded() -> None:
    raise AssertionError("a command that was not named on the command line was run")

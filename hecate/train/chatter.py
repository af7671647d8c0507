"""What libraries warn of while a run goes on: each thing once, on one rank, above the live line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

OURS = ("hecate", "collectives")
PASSES = "hecate_passes"


@contextmanager
def warned_once(rank: int) -> Iterator[None]:
    """Until the end, repeat no warning of Python's, nor a library's log message.

    A message is the same if it comes from the same place, whatever numbers are in it. Ranks other
    than 0 say what is an error, and leave warnings to rank 0, which most often has the same. Our
    own messages pass: each is said when it is due.
    """
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.showwarning = _Warnings(rank).show
        repeated = _Repeated(rank)
        for handler in _handlers():
            handler.addFilter(repeated)
            undo.callback(handler.removeFilter, repeated)
            stream = vars(handler).get("stream")  # some look sys.stderr up themselves
            if isinstance(handler, logging.StreamHandler) and stream is sys.stderr:
                # a live line stands in for sys.stderr, and what passes it by tears it
                handler.setStream(_Stderr())
                undo.callback(handler.setStream, stream)
        yield


class _Warnings:
    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._seen: set[tuple[str, int, str]] = set()

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Stands in for ``warnings.showwarning``: one line each."""
        place = (filename, lineno, category.__name__)
        if self._rank or place in self._seen:
            return
        self._seen.add(place)
        text = " ".join(str(message).split())
        print(f"{category.__name__}: {text} ({filename}:{lineno})", file=file or sys.stderr)


class _Repeated(logging.Filter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank
        self._seen: set[tuple[str, str, int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        passes = vars(record).get(PASSES)  # one handler may have asked before another
        if passes is None:
            passes = vars(record)[PASSES] = self._passes(record)
        return bool(passes)

    def _passes(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in OURS or record.levelno >= logging.ERROR:
            return True
        place = (record.name, record.pathname, record.lineno)
        if self._rank or place in self._seen:
            return False
        self._seen.add(place)
        return True


class _Stderr:
    """Whatever ``sys.stderr`` is when something is written."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _handlers() -> list[logging.Handler]:
    """Those of all loggers there are, and the one for messages that none of them handles."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = [h for one in loggers if isinstance(one, logging.Logger) for h in one.handlers]
    if logging.lastResort is not None:
        found.append(logging.lastResort)
    return list(dict.fromkeys(found))

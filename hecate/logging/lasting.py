"""A sink that outlives what it writes to: a full disk is no reason for a run to end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from hecate.errors import StorageError
from hecate.logging.protocol import OpenSink, Value

_LOG = logging.getLogger(__name__)


class Lasting:
    """``sink``, whose failures to write are said once; it is tried again with every ``log``."""

    def __init__(self, name: str, sink: OpenSink) -> None:
        self.sink = sink
        self._name, self._said = name, False

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        self._try(lambda: self.sink.log(step, values), f"step {step}: ")

    def close(self) -> None:
        self._try(self.sink.close, "")

    def _try(self, action: Callable[[], object], where: str) -> None:
        try:
            action()
        except (OSError, StorageError) as error:
            if not self._said:
                self._said = True
                got = error.got if isinstance(error, StorageError) else error.strerror or str(error)
                what = error.what if isinstance(error, StorageError) else "metrics are not written"
                _LOG.warning(
                    "%s%s (%s): the run goes on, and %s may lack steps",
                    where,
                    what,
                    got,
                    self._name,
                )

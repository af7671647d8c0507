"""Weights & Biases: in the run folder, offline unless asked and able to upload, never asking back.

The only file that imports ``wandb``.
"""

from __future__ import annotations

import errno
import logging
import netrc
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
import pandas  # noqa: F401  # wandb does at the first value: no step waits, and the sink is charged
import wandb

from hecate.errors import StorageError
from hecate.logging.config import LoggingConfig
from hecate.logging.protocol import Run, Value
from hecate.logging.sections import charts_of

_LOG = logging.getLogger(__name__)
_MAX_BINS = 512  # what a wandb histogram holds
LEAST_FREE_BYTES = 1 << 16  # with less, what was logged may not fit


class WandbSink:
    """Logs to a run whose id lies in ``<run folder>/wandb/run-id``, so that a resumed job goes on
    with the same one; of an offline run, ``wandb sync`` joins the parts by that id.

    Steps are logged as a metric of their own, against which all others are drawn: a step that is
    repeated after a resume replaces nothing and is not refused.
    """

    def __init__(
        self,
        run: Run,
        *,
        mode: Literal["offline", "online"],
        project: str,
        init_timeout_s: float = 60.0,
    ) -> None:
        if mode == "online" and not has_credentials(wandb.setup().settings.base_url):
            _LOG.warning(
                "wandb_mode is online but there are no W&B credentials: the run stays offline "
                "(`wandb login` once, or later `wandb sync %s`)",
                run.folder / "wandb" / "offline-*",
            )
            mode = "offline"
        run_id, self._folder = _run_id(run), run.folder
        try:
            self._run = _start(run, run_id, mode, project, init_timeout_s)
        except wandb.Error as error:
            if mode == "offline":
                raise
            _LOG.warning(
                "W&B did not answer, so the run stays offline (%s)", str(error).splitlines()[0]
            )
            wandb.teardown()  # its service holds the id of the run that did not start
            self._run = _start(run, run_id, "offline", project, init_timeout_s)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    @classmethod
    def open(cls, config: LoggingConfig, run: Run) -> Self:
        assert config.wandb_mode != "off", "open_sinks leaves this sink out when it is off"
        return cls(run, mode=config.wandb_mode, project=config.wandb_project)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        charts = charts_of(values)
        row: dict[str, object] = {"step": step, **charts.curves}
        row |= {name: _histogram(heights) for name, heights in charts.maps.items()}
        self._run.log(row)
        if shutil.disk_usage(self._folder).free < LEAST_FREE_BYTES:
            # another process writes, and tells of a full disk in a log of its own alone
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._run.finish()


def has_credentials(base_url: str) -> bool:
    """Whether wandb would find an API key or an identity token without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC", "")
    candidates = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in candidates:
        try:
            entry = netrc.netrc(path).authenticators(urlsplit(base_url).netloc)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False


def _run_id(run: Run) -> str:
    """The id of the run in this folder; a new run gets a new one."""
    path = run.folder / "wandb" / "run-id"
    if run.resumed_step > 0 and path.is_file():
        return path.read_text(encoding="ascii").strip()
    run_id = uuid.uuid4().hex[:8]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run_id + "\n", encoding="ascii")
    except OSError as error:
        raise StorageError(
            f"the Weights & Biases run cannot be kept in {path.parent}",
            got=error.strerror or str(error),
            expected="a writable folder with free space",
            fix="free some space or set folder to another disk",
        ) from error
    return run_id


def _start(
    run: Run,
    run_id: str,
    mode: Literal["offline", "online"],
    project: str,
    init_timeout_s: float,
) -> Any:
    return wandb.init(
        project=project,
        name=run.name,
        id=run_id,
        dir=str(run.folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        config=dict(run.settings) | {"environment": dict(run.environment)},
        settings=wandb.Settings(
            silent=True,
            console="off",  # it would take the live bar's output for a log
            save_code=False,
            init_timeout=init_timeout_s,
        ),
    )


def _histogram(heights: Sequence[float]) -> wandb.Histogram:
    """One bar for each value, or for each run of neighbours where there are too many.

    W&B draws the histograms of all steps as a heat map: steps across, layers or experts upwards.
    """
    stride = max(1, -(-len(heights) // _MAX_BINS))
    starts = range(0, len(heights), stride)
    bars = np.array([sum(heights[start : start + stride]) for start in starts])
    edges = np.array([*starts, len(heights)])
    return wandb.Histogram(np_histogram=(bars, edges))

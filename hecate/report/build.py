"""A run's folder -> its report: what ``hecate report`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hecate.errors import ConfigError, StorageError
from hecate.files import write_text
from hecate.report import loads as loads_file
from hecate.report import metrics as metrics_file
from hecate.report import starts as starts_file
from hecate.report.curves import Training, charts
from hecate.report.events import events
from hecate.report.facts import RunFolder, figures, headline, how_drawn, missing
from hecate.report.html import Page, render
from hecate.report.maps import ExpertMaps, expert_maps, layer_maps
from hecate.report.profile import FILE as PROFILE
from hecate.report.profile import read_profile
from hecate.report.records import Floats
from hecate.report.spent import phase_areas, time_spent
from hecate.yaml_text import parse_yaml

CONFIG = "config.yaml"
OUT = "report.html"


@dataclass(frozen=True)
class Written:
    """The file that was written, and what its notes say is missing."""

    path: Path
    size_bytes: int
    missing: tuple[str, ...]


def report(folder: Path, out: Path | None = None) -> Written:
    """Draw the run in ``folder`` into one HTML file, ``out`` or ``report.html`` in the folder.

    Whatever the folder lacks, the page says. Raises ``StorageError`` where there is nothing to draw
    at all, or no file can be written.
    """
    run = read_run(folder)
    training = Training.of(run.metrics, run.starts)
    spent = time_spent(run.metrics, run.starts)
    experts = _experts(folder, run, training)
    layers = layer_maps(training)
    lacking = missing(run, training, experts)
    page = Page(
        run=run,
        headline=headline(run),
        figures=figures(run, training, spent),
        missing=lacking,
        drawn=how_drawn(training, layers, experts),
        charts=charts(run.metrics, training),
        layers=layers,
        experts=experts,
        spent=spent,
        areas=phase_areas(training),
        profile=read_profile(folder / PROFILE),
        events=events(
            run.metrics,
            training,
            run.starts,
            spent,
            starts_file.read_recoveries(folder / starts_file.RECOVERIES),
        ),
    )
    text = render(page).encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a character
    path = out or folder / OUT
    write_text(path, text)
    return Written(path, len(text.encode()), tuple(lacking))


def read_run(folder: Path) -> RunFolder:
    """What ``folder`` says of its run. Raises ``StorageError`` where it says nothing."""
    metrics = metrics_file.read_metrics(folder / metrics_file.FILE)
    loads = loads_file.read_loads(folder / loads_file.FILE)
    recorded, damage = starts_file.read_starts(folder / starts_file.FILE)
    if not (metrics.training or metrics.evaluations or len(loads.steps)):
        found = sorted(path.name for path in folder.glob("[!.]*")) if folder.is_dir() else []
        what = "is not the folder of a run" if not found else "holds nothing to draw"
        raise StorageError(
            f"{folder} {what}",
            got=", ".join(found[:6])
            or ("an empty folder" if folder.is_dir() else "no such folder"),
            expected=f"a folder that hecate train made, with a step in {metrics_file.FILE} or "
            f"{loads_file.FILE}",
            fix="pass the run's folder, such as runs/demo, once it has logged a step",
        )
    tree, text = _config(folder / CONFIG)
    name = tree.get("name")
    return RunFolder(
        name=name if isinstance(name, str) and name else folder.resolve().name,
        config=tree,
        config_text=text,
        metrics=metrics,
        loads=loads,
        starts=recorded or loads.starts,
        starts_recorded=bool(recorded),
        starts_damage=damage,
        checkpoints=tuple(sorted(p.name for p in folder.glob("checkpoints/step-*"))),
    )


def _config(path: Path) -> tuple[dict[str, Any], str]:
    """The settings as a tree, which may be of another version, and as they stand in the file."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = parse_yaml(text, str(path)).plain()
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}, ""
    return (tree, text) if isinstance(tree, dict) else ({}, text)


def _experts(folder: Path, run: RunFolder, training: Training) -> ExpertMaps | None:
    """From every step's loads, or from the logged lines where no loads were kept."""
    if len(run.loads.steps):
        path, offsets = folder / loads_file.FILE, run.loads.offsets
        steps, begun = run.loads.steps, run.loads.begun

        def recorded(place: int) -> list[Floats]:
            return loads_file.slots_of_step(path, int(offsets[place]))

        return expert_maps(steps, begun, recorded, loads_file.FILE)
    path = folder / metrics_file.FILE
    places = np.array([line.offset for line in training.lines], dtype=np.int64)

    def logged(place: int) -> list[Floats]:
        return metrics_file.expert_slots(path, int(places[place]))

    return expert_maps(training.steps, training.begun, logged, metrics_file.FILE)

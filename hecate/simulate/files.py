"""Descriptions of clusters and workloads on disk: by path, or by the name of a shipped one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from hecate.config import Config, load_config, nearest_name
from hecate.errors import ConfigError
from hecate.simulate.cluster import ClusterConfig
from hecate.simulate.workload import WorkloadConfig

SHIPPED = Path(__file__).parents[2] / "configs"

C = TypeVar("C", bound=Config)


def load_cluster(name: str) -> ClusterConfig:
    """Raises ``ConfigError``."""
    return load_config(ClusterConfig, _file("cluster", name)).value


def load_workload(name: str, overrides: Sequence[str] = ()) -> WorkloadConfig:
    """``overrides``: as ``--set`` takes them. Raises ``ConfigError``."""
    return load_config(WorkloadConfig, _file("workload", name), overrides).value


def _file(kind: Literal["cluster", "workload"], name: str) -> Path:
    given = Path(name)
    if given.suffix or len(given.parts) > 1:
        return given
    names = sorted(file.stem for file in (SHIPPED / kind).glob("*.yaml"))
    if name not in names:
        near = nearest_name(name, names)
        raise ConfigError(
            f"there is no {kind} {name}",
            got=name,
            expected=f"one of {', '.join(names)}, or the path of a YAML file",
            fix=f"did you mean {near}?" if near else "choose one of these",
        )
    return SHIPPED / kind / f"{name}.yaml"

"""How many workers a run has on Ray, on what, and how often they may fail."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hecate.config import Config


class RayConfig(Config):
    """What ``hecate train CONFIG --ray`` asks of a cluster.

    ``num_workers``: how many ranks. With ``min_workers`` above 0 as few as that will do: a run
    starts again with those that the cluster has left, and, looked at every ``resize_every_s``
    seconds, with more when it has more. ``cpus_per_worker`` are also the threads of a rank;
    ``gpus_per_worker`` is 1 on GPUs; ``resources`` are a cluster's own, by name, such as
    ``{rack_a: 1}``.
    ``placement``: together on few nodes or spread over many, if possible or (strict) always.

    ``max_failures``: how many failures end the run that follow each other without a checkpoint in
    between. ``poll_s``: seconds between looks at the workers; a death is noticed that late.
    ``start_timeout_s``: how long to wait for a cluster to have room before asking it again how much
    it has; a lost node costs as much where the cluster has not noticed yet.
    ``object_store_bytes``: of a cluster that is started for this run; training puts nothing there.
    """

    num_workers: int = Field(default=1, gt=0)
    min_workers: int = Field(default=0, ge=0)
    cpus_per_worker: int = Field(default=1, gt=0)
    gpus_per_worker: Literal[0, 1] = 0
    resources: dict[str, float] = {}
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    max_failures: int = Field(default=3, ge=0)
    poll_s: float = Field(default=1.0, gt=0)
    resize_every_s: float = Field(default=60.0, gt=0)
    start_timeout_s: float = Field(default=20.0, gt=0)
    object_store_bytes: int = Field(default=1 << 27, ge=80 << 20)

    @model_validator(mode="after")
    def _as_few_as_there_are(self) -> RayConfig:
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is more than num_workers {self.num_workers}"
            )
        return self

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What one worker takes, as Ray names it."""
        gpus = {"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus, **self.resources}

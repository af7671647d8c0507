"""What a serving app is told beside its engine."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hecate.config import Config
from serving.api import ApiConfig
from serving.applications import ApplicationsConfig
from serving.engine.config import EngineConfig


class HttpConfig(Config):
    """Where the app listens; ``0.0.0.0`` for other machines too. Port 0 takes one that is free.

    ``through``: who does. ``ingress``: its replicas themselves, which costs least, each on its own
    machine, and with a gap when one is replaced; ``proxy``: Ray Serve's proxies, on every machine
    of a cluster; ``auto``: the ingress where Ray is of this machine alone, proxies on a cluster.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    through: Literal["auto", "ingress", "proxy"] = "auto"


class IngressConfig(Config):
    """What speaks HTTP. ``replicas`` of it run; each has its own share of quotas.

    ``tries``: on how many engine replicas a request is tried before its first token. ``admit_s``:
    how long a replica may take to admit one. ``watch_s``: how often a replica is asked how it is;
    after ``silence_s`` without an answer from any, ``/health`` is false.
    """

    replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0.0, ge=0)
    tries: int = Field(default=3, ge=1)
    admit_s: float = Field(default=30.0, gt=0)
    watch_s: float = Field(default=1.0, gt=0)
    silence_s: float = Field(default=15.0, gt=0)


class ReplicasConfig(Config):
    """Engine replicas, from ``min`` to ``max`` of them: as many as keep each of them below
    ``target_waiting`` requests that wait and ``target_tokens`` in flight, on average.

    ``drain_s``: how long a replica that is to go may take for what it is answering.
    ``num_cpus`` and ``num_gpus``: of each, as Ray counts them.

    ``placement``: where a request with an adapter goes. ``least_tokens``: as those without one, to
    the replica with the least tokens in flight; ``rank_aware``: where it makes the time a token
    least longer, by the ``step_model`` that ``hecate profile`` wrote, rather than where a decode
    step would take more than ``token_slo_s``; ``adapter_home``: where its adapter is; the others
    are there to be compared with. ``auto``: ``rank_aware`` where there is a ``step_model``.
    """

    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)
    target_waiting: float = Field(default=8.0, gt=0)
    target_tokens: float = Field(default=65536.0, gt=0)
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    health_period_s: float = Field(default=5.0, gt=0)
    drain_s: float = Field(default=600.0, gt=0)
    placement: Literal[
        "auto",
        "least_tokens",
        "rank_aware",
        "random",
        "first_fit",
        "least_loaded",
        "adapter_home",
    ] = "auto"
    step_model: str = ""
    token_slo_s: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _steps_are_known(self) -> Self:
        if self.placement == "rank_aware" and not self.step_model:
            raise ValueError("placement rank_aware needs step_model, which hecate profile writes")
        if self.placement not in ("auto", "rank_aware") and self.step_model:
            raise ValueError(f"step_model has no effect with placement {self.placement}")
        return self

    @property
    def policy(self) -> str:
        """``placement``, decided."""
        if self.placement != "auto":
            return self.placement
        return "rank_aware" if self.step_model else "least_tokens"


class RayConfig(Config):
    """``address``: ``local`` starts Ray on this machine and ends it again; ``auto`` or a cluster's
    address joins one. ``object_store_mib`` is of a local one, which keeps nothing large in it."""

    address: str = "local"
    object_store_mib: int = Field(default=256, ge=76)


class WandbConfig(Config):
    """Figures of every replica to Weights & Biases: a run of its own for each start, in ``folder``.

    ``mode`` ``online`` uploads with the credentials that ``wandb login`` left on the machine where
    it runs; without any, and ``offline``, ``wandb sync`` finds the run in ``folder``.
    """

    mode: Literal["off", "offline", "online"] = "off"
    project: str = "hecate"
    folder: str = "runs/serve"
    every_s: float = Field(default=10.0, gt=0)


class AppConfig(Config):
    """All but the engine."""

    ray: RayConfig = RayConfig()
    api: ApiConfig = ApiConfig()
    http: HttpConfig = HttpConfig()
    ingress: IngressConfig = IngressConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    applications: ApplicationsConfig = ApplicationsConfig()
    wandb: WandbConfig = WandbConfig()

    @property
    def ingress_listens(self) -> bool:
        """Whether HTTP reaches the ingress without a proxy."""
        through = self.http.through
        return through == "ingress" or (through == "auto" and self.ray.address == "local")


class ServingConfig(AppConfig):
    """A whole app: ``hecate serve CONFIG`` reads one."""

    engine: EngineConfig

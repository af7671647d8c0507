"""The configuration of a training run: one tree, each part beside what it configures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hecate.checkpoint.store import CheckpointConfig
from hecate.config import Config
from hecate.data.config import DataConfig
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.routing import RouterConfig
from hecate.logging import LoggingConfig
from hecate.mesh import MeshConfig
from hecate.models.build import ModelConfig
from hecate.models.lora import LoraConfig
from hecate.train.dense.config import DenseConfig
from hecate.train.elastic.config import ElasticConfig
from hecate.train.ema import EmaConfig
from hecate.train.optim import OptimizerConfig, ScheduleConfig
from hecate.train.parallelism import what_instead
from hecate.train.profile.config import ProfileConfig
from hecate.train.spikes import GuardConfig
from hecate.train.watchdog import WatchdogConfig
from hecate.train.workers.config import RayConfig


class TrainConfig(Config):
    """How long, how much at a time, in which precision.

    ``batch_sequences`` is the whole job's, for each optimizer step; it is cut into
    ``accumulation`` micro-batches, and each of those into ranks. ``eval_every``: steps between
    evaluations on the held-out files, 0 for only one at the end; ``eval_sequences``: how many
    held-out sequences such an evaluation takes, 0 for all (the last one always takes all).
    """

    steps: int = Field(gt=0)
    batch_sequences: int = Field(gt=0)
    accumulation: int = Field(default=1, gt=0)
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    activation_checkpointing: bool = False
    clip_norm: float = Field(default=1.0, ge=0)
    eval_every: int = Field(default=0, ge=0)
    eval_sequences: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainConfig:
        if self.batch_sequences % self.accumulation:
            raise ValueError(
                f"batch_sequences {self.batch_sequences} is not a multiple of accumulation "
                f"{self.accumulation}"
            )
        return self


class RunConfig(Config):
    """Everything that a run depends on; ``config.yaml`` in the run's folder is one."""

    name: str
    folder: str = "runs"
    seed: int = 0
    model: ModelConfig
    data: DataConfig = DataConfig()
    experts: ExpertsConfig = ExpertsConfig()
    router: RouterConfig = RouterConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig
    dense: DenseConfig = DenseConfig()
    guard: GuardConfig = GuardConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    profile: ProfileConfig = ProfileConfig()
    mesh: MeshConfig = MeshConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    ray: RayConfig = RayConfig()
    elastic: ElasticConfig = ElasticConfig()

    @classmethod
    def what_instead(cls, key: tuple[str, ...]) -> str:
        return what_instead(key)

    @model_validator(mode="after")
    def _steps_to_record(self) -> RunConfig:
        last = self.profile.window(0)[-1] + 1
        if self.profile.enabled and last > self.train.steps:
            raise ValueError(
                f"profile records steps to {last}, and the run ends after train.steps = "
                f"{self.train.steps}; lower profile.first_step or profile.steps"
            )
        return self

    @model_validator(mode="after")
    def _something_to_adapt(self) -> RunConfig:
        if self.lora.active and not self.model.path:
            raise ValueError(
                "lora.rank adapts a trained model, and model.path names none; set model.path to a "
                "Hugging Face folder, or lora.rank to 0"
            )
        if self.lora.active and self.dense.backend != "fsdp2":
            raise ValueError(
                f"dense.backend {self.dense.backend} does not train adapters beside a frozen "
                "model; set dense.backend to fsdp2, or lora.rank to 0"
            )
        if self.optimizer.kind == "muon" and self.lora.active:
            raise ValueError(
                "optimizer.kind muon trains whole matrices, and lora.rank trains factors of low "
                "rank; set optimizer.kind to adamw, or lora.rank to 0"
            )
        if self.optimizer.kind == "muon" and self.dense.backend == "deepspeed":
            raise ValueError(
                "optimizer.kind muon needs whole matrices, which dense.backend deepspeed cuts "
                "into flat parts; set dense.backend to fsdp2 or ddp, or optimizer.kind to adamw"
            )
        if self.ema.decay and (self.lora.active or self.dense.backend == "deepspeed"):
            other = "lora.rank" if self.lora.active else "dense.backend deepspeed"
            raise ValueError(
                f"ema.decay averages what the trainer's own optimizer steps, and {other} leaves "
                "it only a part of the model; set ema.decay to 0, or train without that"
            )
        return self

"""Who trains the dense part of a model, and what DeepSpeed is told where it does."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from hecate.config import Config

BackendName = Literal["fsdp2", "ddp", "deepspeed"]

# DeepSpeed's keys whose meaning another part of our configuration has -> that part.
OWNED = {
    "train_batch_size": "train.batch_sequences",
    "train_micro_batch_size_per_gpu": "train.batch_sequences and train.accumulation",
    "gradient_accumulation_steps": "train.accumulation",
    "managed_gradient_accumulation": "train.accumulation",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "gradient_clipping": "train.clip_norm",
    "fp16": "train.dtype",
    "bf16": "train.dtype",
    "bfloat16": "train.dtype",
    "amp": "train.dtype",
    "torch_autocast": "train.dtype",
    "data_types": "train.dtype",
    "communication_data_type": "train.dtype",
    "prescale_gradients": "the step, which sums gradients over ranks",
    "gradient_predivide_factor": "the step, which sums gradients over ranks",
    "activation_checkpointing": "train.activation_checkpointing",
    "checkpoint": "checkpoint",
    "expert_parallel": "experts",
    "tensor_parallel": "nothing: only data parallel ranks are supported",
    "zero_force_ds_cpu_optimizer": "optimizer",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_optimization.stage": "dense.deepspeed.stage",
    "zero_optimization.offload_optimizer": "dense.deepspeed.offload_optimizer",
    "zero_optimization.offload_param": "dense.deepspeed.offload_param",
    "zero_optimization.mics_shard_size": "nothing: shards lie over all ranks",
    "zero_optimization.zenflow": "the step, which updates every parameter",
}


class DeepSpeedConfig(Config):
    """DeepSpeed's ZeRO over the dense parameters.

    ``stage``: 1 shards the optimizer's state, 2 gradients as well, 3 parameters as well.
    ``offload_optimizer`` and ``offload_param`` (stage 3) are DeepSpeed's mappings of these names,
    such as ``{device: cpu, pin_memory: true}``; NVMe is refused, since the norm of gradients that
    lie there cannot be read. ``settings``: anything else of DeepSpeed's own configuration, as it
    is, but what another part of ours says already.
    """

    stage: Literal[1, 2, 3] = 2
    offload_optimizer: dict[str, Any] = Field(default_factory=dict)
    offload_param: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _nothing_twice(self) -> DeepSpeedConfig:
        inner = self.settings.get("zero_optimization", {})
        if not isinstance(inner, dict):
            raise ValueError("settings.zero_optimization is not a mapping")
        keys = [*self.settings, *(f"zero_optimization.{key}" for key in inner)]
        for key in keys:
            if key in OWNED:
                raise ValueError(
                    f"settings.{key} is not DeepSpeed's to say here; leave it out: it is said by "
                    f"{OWNED[key]}"
                )
        for name, offload in self._offloads():
            device = offload.get("device", "none")
            if device not in ("cpu", "none"):
                raise ValueError(f"{name}.device is {device!r}; choose cpu or none")
        if self.offload_param and self.stage != 3:
            raise ValueError("offload_param needs stage 3: below it, parameters are not sharded")
        return self

    def _offloads(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        return (
            ("offload_optimizer", self.offload_optimizer),
            ("offload_param", self.offload_param),
        )

    @property
    def offloads_optimizer(self) -> bool:
        """Whether gradients and moments lie in host memory."""
        return bool(self.offload_optimizer.get("device", "none") != "none")


class DenseConfig(Config):
    """Who shards the dense parameters, sums their gradients and keeps their optimizer's state.

    ``fsdp2`` shards all three over the ranks; ``ddp`` keeps all of them on every rank and sums
    gradients in buckets; ``deepspeed`` is ZeRO. Experts are sharded by their owners in each.
    """

    backend: BackendName = "fsdp2"
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @model_validator(mode="after")
    def _has_effect(self) -> DenseConfig:
        if self.backend != "deepspeed" and self.deepspeed != DeepSpeedConfig():
            raise ValueError(
                f"deepspeed is set, but backend is {self.backend}; set backend to deepspeed or "
                "leave it out"
            )
        return self


def engine_settings(
    config: DeepSpeedConfig, *, accumulation: int, bfloat16: bool
) -> dict[str, Any]:
    """What DeepSpeed is initialized with: the user's settings, and ours over them.

    Its clipping and its scaling of the loss are off: the step clips by the norm of dense and
    expert gradients together. Gradients cross ranks in fp32.
    """
    inner = dict(config.settings.get("zero_optimization", {})) | {"stage": config.stage}
    for name, offload in config._offloads():
        if offload.get("device", "none") != "none":
            inner[name] = dict(offload)
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's own figures depend on it
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,
        "zero_optimization": inner,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
    }
    if bfloat16:
        ours["bf16"] = {"enabled": True}
    return {"steps_per_print": 1 << 30, **config.settings, **ours}

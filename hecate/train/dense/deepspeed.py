"""The dense part under DeepSpeed's ZeRO, stages 1 to 3; the one file here that imports DeepSpeed.

DeepSpeed broadcasts, partitions and reduces whatever it finds in ``module.parameters()``; at stage
3 it looks there in every step. Experts are out of its sight for good, and it has an optimizer for
the dense parameters alone. Gradients arrive as means over ranks. The factor that makes them sums,
and the one that clips, go in as the scale that its ``step`` takes out of gradients anyhow
(``override_loss_scale``), so that they cost nothing; no loss is scaled.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hecate.checkpoint.names import dense_key, optimizer_key
from hecate.errors import ConfigError
from hecate.train.dense.config import engine_settings
from hecate.train.dense.parameters import allocate, named_dense
from hecate.train.dense.protocol import DenseJob
from hecate.train.moments import MOMENTS, moments_of
from hecate.train.optim import build_optimizer, set_learning_rate


class DeepSpeed:
    """ZeRO over fp32 masters; the forward pass computes in fp32 or bf16.

    Each rank allocates the dense parameters whole before they are partitioned. A checkpoint holds
    them and their moments whole and by name, as those of the other backends, so it resumes at any
    world size, stage and backend; each is gathered once for it, and loading one takes their fp32
    size three times over in host memory.
    """

    def __init__(self, job: DenseJob) -> None:
        _require_deepspeed()
        if job.compute_dtype == torch.float64:
            raise ConfigError(
                "DeepSpeed keeps its masters in fp32",
                got="train.dtype float64 with dense.backend deepspeed",
                expected="float32 or bfloat16",
                fix="set train.dtype, or dense.backend to fsdp2 or ddp",
            )
        self._job, self._stage = job, job.config.deepspeed.stage
        self._bfloat16 = job.compute_dtype == torch.bfloat16
        self._engine: Any = None
        nn.Module.to(job.model, dtype=torch.float32)
        job.experts.unregister()
        allocate(job.root, job.model, job.ctx.device)
        self._named = dict(named_dense(job.model))

    def targets(self) -> dict[str, torch.Tensor]:
        model = self._job.model
        whole: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        return whole | dict(model.named_buffers())

    def start(self) -> None:
        job = self._job
        _join(job)
        import deepspeed

        exact = {}
        if self._bfloat16:  # DeepSpeed makes its masters of what it has rounded to bf16
            exact = {dense_key(n): p.detach().clone() for n, p in self._named.items()}
        settings = engine_settings(
            job.config.deepspeed, accumulation=job.accumulation, bfloat16=self._bfloat16
        )
        optimizer = build_optimizer(job.optimizer, self._named.items(), _embeddings(job.model))
        if type(optimizer) is not torch.optim.AdamW:
            raise ConfigError(
                "DeepSpeed steps the dense parameters by AdamW alone here",
                got=f"optimizer.kind {job.optimizer.kind} with dense.backend deepspeed",
                fix="set optimizer.kind to adamw, or dense.backend to fsdp2",
            )
        self._engine, *_ = deepspeed.initialize(
            model=job.root,
            optimizer=optimizer,
            model_parameters=list(self._named.values()),
            config=settings,
        )
        # DeepSpeed would link them after its first group has stepped, when the others have none yet
        self._make_moments()
        if exact:
            self._write(exact)

    def masters(self) -> dict[str, nn.Parameter]:
        return {}

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, *inputs: Any) -> torch.Tensor:
        loss: torch.Tensor = self._engine(*inputs)
        return loss

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def square_sum(self) -> torch.Tensor:
        if self._job.config.deepspeed.offloads_optimizer and self._job.ctx.device.type == "cuda":
            torch.cuda.synchronize(self._job.ctx.device)  # gradients are on their way to the host
        parts = [part for part in self._gradients() if part.numel()]
        if not parts:
            return torch.zeros((), dtype=torch.float64)
        norms = torch._foreach_norm(parts, dtype=torch.float32)
        means = torch.stack(norms).double().square().sum().cpu()
        return means * self._job.ctx.world_size**2

    def update(self, *, factor: float, learning_rate: float) -> None:
        optimizer = self._engine.optimizer
        set_learning_rate(optimizer.optimizer, learning_rate)
        optimizer.override_loss_scale(1.0 / (factor * self._job.ctx.world_size))
        self._engine.step()
        optimizer.override_loss_scale(1.0)

    def discard(self) -> None:
        """Let DeepSpeed drop the step as one whose gradients overflowed, which it looks for."""
        optimizer = self._engine.optimizer
        if self._job.ctx.rank == 0:
            for part in self._gradients():
                part.fill_(float("inf"))
                break
            norms = getattr(optimizer, "norm_for_param_grads", {})
            for key in norms:
                norms[key] = torch.full_like(torch.as_tensor(norms[key]), float("inf"))
        if self._stage < 3:
            checks = optimizer.check_grad_overflow
            optimizer.check_grad_overflow = optimizer.local_overflow = True
            self._engine.step()
            optimizer.check_grad_overflow, optimizer.local_overflow = checks, False
        else:
            self._engine.step()

    def release(self) -> None:
        pass

    def saved(self, *, moments: bool) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        ctx, state = self._job.ctx, {}
        for number, (name, parameter) in enumerate(self._named.items()):
            key = dense_key(name)
            whole = {}
            if moments:
                for moment in MOMENTS:
                    value = safe_get_full_optimizer_state(parameter, moment)
                    whole[optimizer_key(key, moment)] = value
            else:
                whole[key] = safe_get_full_fp32_param(parameter)
            if number % ctx.world_size == ctx.rank:
                state.update({k: value.cpu() for k, value in whole.items()})
        return state

    def unfilled(self, *, moments: bool) -> dict[str, torch.Tensor]:
        state = {}
        for name, parameter in self._named.items():
            key = dense_key(name)
            for one in [optimizer_key(key, m) for m in MOMENTS] if moments else [key]:
                state[one] = torch.empty(_shape(parameter), dtype=torch.float32)
        return state

    def restore(self, filled: dict[str, torch.Tensor], *, step: int) -> None:
        self._write(filled)
        for flat in self._flat():
            self._engine.optimizer.optimizer.state[flat]["step"].fill_(float(step))

    def _flat(self) -> list[torch.Tensor]:
        """This rank's partition of the masters, one tensor for each group that is stepped."""
        optimizer = self._engine.optimizer
        if self._stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)

    def _gradients(self) -> Iterator[torch.Tensor]:
        """This rank's partition of the gradients, means over ranks; shares storage."""
        if self._job.config.deepspeed.offloads_optimizer:
            yield from (flat.grad for flat in self._flat() if flat.grad is not None)
            return
        for parts in self._engine.optimizer.averaged_gradients.values():
            yield from parts or ()

    def _make_moments(self) -> None:
        optimizer = self._engine.optimizer
        for flat in self._flat():
            moments_of(optimizer.optimizer, flat)  # type: ignore[arg-type]
        if self._stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()

    def _write(self, state: dict[str, torch.Tensor]) -> None:
        """Set masters, moments and what the forward pass uses from whole tensors by key."""
        for name, parameter in self._named.items():
            key = dense_key(name)
            for moment in MOMENTS:
                value = state.get(optimizer_key(key, moment))
                if value is not None:
                    self._set_part(parameter, value, moment)
            if key in state:
                self._set_part(parameter, state[key], "")
                with torch.no_grad():
                    self._set_whole(parameter, state[key])

    def _set_part(self, parameter: nn.Parameter, value: torch.Tensor, moment: str) -> None:
        from deepspeed import utils

        if self._stage < 3:
            if moment:
                utils.safe_set_full_optimizer_state(parameter, value, moment)
            else:
                utils.safe_set_full_fp32_param(parameter, value)
            return
        part: Any = parameter
        rank, size = self._job.ctx.rank, part.ds_tensor.numel()
        padded = torch.zeros(size * self._job.ctx.world_size, dtype=value.dtype)
        padded[: value.numel()] = value.flatten()
        own = padded[rank * size : (rank + 1) * size]
        if moment:
            utils.safe_set_local_optimizer_state(parameter, own, moment)
        else:
            utils.safe_set_local_fp32_param(parameter, own)

    def _set_whole(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        import deepspeed

        if self._stage < 3:
            parameter.data.copy_(value)
            return
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)


def _require_deepspeed() -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "dense.backend deepspeed needs DeepSpeed, which is not installed",
            fix="DS_BUILD_OPS=0 pip install 'hecate[deepspeed]', or set dense.backend to fsdp2",
        )


def _join(job: DenseJob) -> None:
    """Let DeepSpeed adopt the groups that are there, and speak of failures only."""
    ctx = job.ctx
    if ctx.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # What DeepSpeed's launcher would say; the group that is there needs no address.
    os.environ.update(LOCAL_RANK=str(ctx.local_rank), RANK=str(ctx.rank))
    os.environ["WORLD_SIZE"] = str(ctx.world_size)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    from deepspeed import ops
    from deepspeed.comm import init_distributed

    # Its all-reduce for inference on CPUs, which would be compiled here for a minute and not used.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls these under their older names, thousands of times.
    older = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
    warnings.filterwarnings("ignore", older, FutureWarning)
    backend = "nccl" if ctx.device.type == "cuda" else "gloo"
    init_distributed(dist_backend=backend, verbose=False)


def _embeddings(model: Any) -> list[nn.Parameter]:
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [module.weight for module in modules if module is not None]


def _shape(parameter: Any) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape

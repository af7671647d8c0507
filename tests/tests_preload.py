"""What the fork server of ``ranks.py`` imports once, so that each rank starts with it."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed would look for GPUs, before the fork

import datasets  # noqa: E402, F401
import deepspeed.runtime.engine  # noqa: E402, F401
import torch  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401
import torch.distributed.checkpoint  # noqa: E402, F401
import torch.distributed.fsdp  # noqa: E402, F401
import transformers.models.auto.modeling_auto  # noqa: E402, F401
import wandb  # noqa: E402, F401

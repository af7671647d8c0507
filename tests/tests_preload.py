"""What the fork server of ``ranks.py`` imports once, so that each rank starts with it."""

import datasets  # noqa: F401
import torch  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.distributed.checkpoint  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401
import wandb  # noqa: F401

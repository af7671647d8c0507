"""What the fork server of ``ranks.py`` imports once, so that each rank starts with it."""

import gc
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed would look for GPUs, before the fork

import datasets  # noqa: E402, F401
import deepspeed.runtime.engine  # noqa: E402, F401
import hypothesis  # noqa: E402, F401
import pytest  # noqa: E402, F401
import torch  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401
import torch.distributed.checkpoint  # noqa: E402, F401
import torch.distributed.fsdp  # noqa: E402, F401
import transformers.models.auto.modeling_auto  # noqa: E402, F401
import wandb  # noqa: E402, F401
from transformers.models.deepseek_v3 import modeling_deepseek_v3  # noqa: E402, F401
from transformers.models.gpt_oss import modeling_gpt_oss  # noqa: E402, F401
from transformers.models.mixtral import modeling_mixtral  # noqa: E402, F401
from transformers.models.olmoe import modeling_olmoe  # noqa: E402, F401
from transformers.models.qwen3_moe import modeling_qwen3_moe  # noqa: E402, F401

import hecate.bench.peers  # noqa: E402, F401
import hecate.bench.worker  # noqa: E402, F401
import hecate.cli.eval  # noqa: E402, F401
import hecate.cli.export  # noqa: E402, F401
import hecate.cli.generate  # noqa: E402, F401
import hecate.cli.train  # noqa: E402, F401

gc.freeze()  # a rank neither looks through all this for garbage nor copies its pages by doing so

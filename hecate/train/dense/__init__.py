"""The parameters of a model that are no experts, under FSDP2, DDP or DeepSpeed.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | decides | what a backend is |
| config.py | decides | which backend, what DeepSpeed is told |
| parameters.py | executes | dtypes, names and values of dense parameters |
| fsdp2.py | executes | shards of parameters, gradients and moments |
| ddp.py | executes | whole copies on every rank |
| deepspeed.py | executes | ZeRO stages 1 to 3; the one file here that imports DeepSpeed |
"""

from hecate.train.dense.config import DeepSpeedConfig, DenseConfig
from hecate.train.dense.ddp import Ddp
from hecate.train.dense.deepspeed import DeepSpeed
from hecate.train.dense.fsdp2 import Fsdp2
from hecate.train.dense.parameters import (
    DTYPES,
    assign,
    local,
    master_dtype,
    named_dense,
    saved_buffers,
)
from hecate.train.dense.protocol import DenseBackend, DenseJob

BACKENDS: dict[str, type[DenseBackend]] = {"fsdp2": Fsdp2, "ddp": Ddp, "deepspeed": DeepSpeed}

__all__ = [
    "BACKENDS",
    "DTYPES",
    "DeepSpeedConfig",
    "DenseBackend",
    "DenseConfig",
    "DenseJob",
    "assign",
    "local",
    "master_dtype",
    "named_dense",
    "saved_buffers",
]

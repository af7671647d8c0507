"""The trainer and what it is compared with: one file for each, one protocol.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | | what a contender is and is given |
| hecate_trainer.py | executes | this project's trainer |
| plain.py | executes | transformers, fused AdamW, DDP |
| hf_trainer.py | executes | transformers.Trainer |
| deepspeed_moe.py | executes | DeepSpeed's engine and MoE layer; the one file that imports it |
| fsdp2.py | executes | FSDP2 over the whole transformers model |
| peft_model.py | executes | adapters on the peers' model; the one file that imports peft |
| transformers_model.py | executes | the peers' model, and its fastest implementations here |
| entries.py | | the description of a contender |
"""

from hecate.bench.peers import deepspeed_moe, hecate_trainer, hf_trainer, plain
from hecate.bench.peers.entries import Entry
from hecate.bench.peers.protocol import Adapted, Contender, Implementations, Job

OURS = "hecate"
CONTENDERS: dict[str, Entry] = {
    OURS: Entry("hecate", hecate_trainer.train),
    "plain": Entry("transformers + AdamW", plain.train),
    "hf_trainer": Entry("transformers.Trainer", hf_trainer.train, requires=("accelerate",)),
    "deepspeed_moe": Entry("DeepSpeed MoE", deepspeed_moe.train, requires=("deepspeed",)),
}

__all__ = ["CONTENDERS", "OURS", "Adapted", "Contender", "Entry", "Implementations", "Job"]

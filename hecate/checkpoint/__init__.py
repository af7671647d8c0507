"""Checkpoints: what a job saves and how it is found again.

file          decides or executes   in -> out
names.py      decides               layer and expert -> key
folder.py     executes              a folder -> its checkpoints; how one appears and goes
integrity.py  executes              tensors in files -> their sums in meta.json -> whole or damaged
stages.py     decides               how far a save has come
agreement.py  executes              an error on one rank -> the same error on all
writing.py    executes              live tensors -> staged copies -> DCP's files
store.py      executes              a job's state <-> step-00000100
mirror.py     executes              step-00000100 <-> an object store, whole or not at all
architecture.py  decides            meta.json -> the model that a checkpoint holds
reader.py     executes              step-00000100 -> one tensor, without a process group
averaged.py   decides               a key -> that of its running average
base.py       executes              a model's folder -> what tells it from others
adapter.py    executes              step-00000100 of a LoRA run -> a PEFT folder, merged weights
export.py     executes              step-00000100 -> a Hugging Face folder
"""

from hecate.checkpoint.folder import newest_checkpoint
from hecate.checkpoint.reader import CheckpointReader
from hecate.checkpoint.store import CheckpointConfig, CheckpointStore

__all__ = ["CheckpointConfig", "CheckpointReader", "CheckpointStore", "newest_checkpoint"]

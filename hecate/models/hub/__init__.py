"""Hugging Face folders, streamed in and out without a model in memory.

file             decides or executes   in -> out
mapping.py       decides               a family's transforms, names -> recipes between both namings
tensor_files.py  executes              a folder -> its tensors, whole or by row
reading.py       executes              a folder, recipes -> dense tensors, one expert
writing.py       executes              dense tensors, experts, recipes -> a folder
publish.py       executes              a folder half written -> whole, or gone
"""

from hecate.models.hub.mapping import dense_names
from hecate.models.hub.publish import publish_folder
from hecate.models.hub.reading import HubFolder
from hecate.models.hub.writing import (
    SHARD_BYTES,
    FolderDtypes,
    copy_tokenizer,
    write_configuration,
    write_hub_folder,
    write_weights,
)

__all__ = [
    "SHARD_BYTES",
    "FolderDtypes",
    "HubFolder",
    "copy_tokenizer",
    "dense_names",
    "publish_folder",
    "write_configuration",
    "write_hub_folder",
    "write_weights",
]

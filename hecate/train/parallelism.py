"""Other programs' settings for parallelism that is not here, and what to do instead. Pure."""

from __future__ import annotations

import re

_MEMORY = (
    "leave it out; for memory, set train.activation_checkpointing to true, raise "
    "train.accumulation, or use more ranks, over which dense parameters are sharded already"
)
_OTHER = {
    "tensor": f"Hecate splits no matrix over ranks: {_MEMORY}",
    "sequence": f"Hecate splits no sequence over ranks: {_MEMORY}",
    "pipeline": f"Hecate splits no model by layers: {_MEMORY}",
    "context": "torch's context parallelism knows no boundaries of packed documents, so it does "
    "not compose with training here: leave it out; for long sequences, set "
    "train.activation_checkpointing to true, raise train.accumulation, or shorten "
    "data.sequence_tokens",
    "expert": "experts are spread over all ranks always: leave it out; experts.policy says which "
    "ranks compute them (expert_parallel: their owners alone)",
}
_SHORT = {"tp": "tensor", "sp": "sequence", "pp": "pipeline", "cp": "context", "ep": "expert"}
_LONG = re.compile(rf"({'|'.join(_OTHER)})_?(?:model_)?parallel")
_ALL = (
    "leave it out: every rank takes rows of its own, FSDP2 shards dense parameters over all ranks, "
    "and experts are spread over all of them"
)


def what_instead(key: tuple[str, ...]) -> str:
    """How to mend an unknown ``key`` that asks for a form of parallelism; "" where none is."""
    name = key[-1].lower()
    found = _LONG.search(name)
    if found:
        return _OTHER[found[1]]
    for word in re.split(r"[^a-z]+", name):
        if word in _SHORT:
            return _OTHER[_SHORT[word]]
    return _ALL if "parallel" in name else ""

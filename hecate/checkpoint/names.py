"""The keys of a checkpoint: every tensor is named by what it is, never by the rank that held it.

    dense/<name>                          a parameter or buffer outside the experts
    expert/<layer>/<expert_id>            one expert's chunk; <layer> is its experts module's path
    optimizer/<either of these>/<moment>  one optimizer moment of it
    rng/<rank>                            small tensors that belong to one rank of the saving world

A key is free text to the store; these functions only keep the spelling in one place.
"""

from __future__ import annotations


def dense_key(name: str) -> str:
    """The key of a parameter or buffer outside the experts."""
    return f"dense/{name}"


def expert_key(layer: str, expert_id: int) -> str:
    """The key of one expert's chunk; ``layer`` is the path of its experts module."""
    return f"expert/{layer}/{expert_id}"


def optimizer_key(key: str, moment: str) -> str:
    """The key of one optimizer moment of the tensor saved under ``key``."""
    return f"optimizer/{key}/{moment}"


def rng_key(rank: int) -> str:
    """The key of the random state of one rank of the world that saved."""
    return f"rng/{rank}"


def has_one_owner(key: str) -> bool:
    """Whether two ranks that both hold ``key`` contradict each other: an expert and its moments."""
    return key.startswith(("expert/", "optimizer/expert/"))


def describe(key: str) -> str:
    """``key`` in words, for messages: "exp_avg of expert 3 of model.layers.0.mlp.experts"."""
    kind, _, rest = key.partition("/")
    if kind == "optimizer":
        inner, _, moment = rest.rpartition("/")
        return f"{moment} of {describe(inner)}"
    if kind == "expert":
        layer, _, expert_id = rest.rpartition("/")
        return f"expert {expert_id} of {layer}"
    return rest if kind == "dense" else key

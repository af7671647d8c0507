"""Read the folder of an adapter that PEFT, or Hecate, wrote.

Beside a linear layer an adapter is two matrices. Beside the experts of a layer PEFT keeps those of
all of them as two matrices too: ``lora_A`` ``[E * r, in]``, expert after expert, and ``lora_B``
``[out, r * E]``, in whose columns the expert changes first. Of several parameters of one module
each later one is wrapped around the earlier ones, whose keys then have ``base_layer`` in them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hecate.models.lora.peft_format import CONFIG_FILE, WEIGHTS_FILE
from serving.errors import InvalidAdapter
from serving.lora.adapters import Adapter, LowRank
from serving.lora.targets import Target, Targets

_KEY = re.compile(
    r"base_model\.model\.(?P<path>.+?)(?P<wrapped>(\.base_layer)*)\.lora_(?P<half>[AB])\.weight"
)
# Settings that change what is added, and the values with which they do not.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (None, False),
}


@dataclass(frozen=True)
class _Settings:
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    parameters: tuple[str, ...]

    def rank_of(self, target: Target) -> int:
        return int(_by_pattern(self.rank_pattern, target.name, self.rank))

    def scaling(self, target: Target) -> float:
        alpha = float(_by_pattern(self.alpha_pattern, target.name, self.alpha))
        rank = self.rank_of(target)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def wrapped(self, targets: Iterable[Target]) -> list[Target]:
        """Those of an experts module that have an adapter, the innermost one first."""
        return [
            target
            for target in targets
            if any(
                target.name == name or target.name.endswith(f".{name}") for name in self.parameters
            )
        ]


def stamp_of(folder: Path) -> tuple[tuple[int, int], ...]:
    """When the adapter's files were written, and their sizes; empty unless both are there."""
    try:
        found = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except (OSError, ValueError):
        return ()
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in found)


def digest_of(folder: Path) -> str:
    """SHA-256 over the adapter's settings and weights. Raises ``InvalidAdapter``."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except (OSError, ValueError) as error:  # ValueError: no path at all
            raise InvalidAdapter(
                f"there is no adapter in {str(folder)!r}",
                got=f"{name}: {getattr(error, 'strerror', None) or error}",
                expected=f"{CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT writes them",
                fix="give the folder that save_pretrained or hecate export wrote",
                param="lora_path",
            ) from error
    return digest.hexdigest()


def read_adapter(folder: Path, targets: Targets, *, max_rank: int, dtype: torch.dtype) -> Adapter:
    """The adapter in ``folder``, for a model with ``targets``, on the CPU in ``dtype``.

    Raises ``InvalidAdapter`` for what is no LoRA adapter, or not one of this model, or larger than
    ``max_rank``; by the name of what is wrong.
    """
    before = stamp_of(folder)
    digest = digest_of(folder)
    settings = _settings(folder)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _tensors(folder):
        target, half = _owner(key, targets, settings)
        halves.setdefault(target.name, {})[half] = tensor
    if not halves:
        raise _wrong("it changes nothing", got=f"no tensor in {WEIGHTS_FILE}")
    changes = {
        name: _change(target, halves[name], settings, max_rank, dtype)
        for name, target in targets.by_name.items()
        if name in halves
    }
    if stamp_of(folder) != before:
        raise _wrong("its files changed while they were read", fix="load it again")
    return Adapter(digest, changes)


def _settings(folder: Path) -> _Settings:
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__}")
        if values.get("peft_type") != "LORA":
            raise _wrong(
                "it is no LoRA adapter", got=f"peft_type {values.get('peft_type')}", expected="LORA"
            )
        for name, plain in _PLAIN.items():
            if values.get(name) not in plain:
                raise _wrong(
                    f"{name} is not supported", got=f"{values[name]}", expected=f"{plain[-1]}"
                )
        return _Settings(
            rank=int(values["r"]),
            alpha=float(values.get("lora_alpha") or values["r"]),
            rank_pattern=dict(values.get("rank_pattern") or {}),
            alpha_pattern=dict(values.get("alpha_pattern") or {}),
            rslora=bool(values.get("use_rslora")),
            parameters=tuple(values.get("target_parameters") or ()),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _wrong(f"{CONFIG_FILE} cannot be read", got=f"{error}") from error


def _tensors(folder: Path) -> Iterable[tuple[str, torch.Tensor]]:
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            for key in file.keys():
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise _wrong(f"{WEIGHTS_FILE} cannot be read", got=f"{error}") from error


def _owner(key: str, targets: Targets, settings: _Settings) -> tuple[Target, str]:
    """The target that the tensor of this key belongs to, and which half it is."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise _wrong(f"{key} is no half of an adapter", expected="...lora_A.weight, lora_B.weight")
    path, wraps = found["path"], found["wrapped"].count(".base_layer")
    target = targets.by_name.get(path)
    if target is None or target.parameter:
        wrapped = settings.wrapped(targets.of_module(path))
        if wraps >= len(wrapped):
            raise _wrong(
                f"{path} is nothing that an adapter may change in this model",
                got=key,
                expected="linear layers but the head, and routed experts as target_parameters",
            )
        target = wrapped[len(wrapped) - 1 - wraps]
    return target, found["half"]


def _change(
    target: Target,
    halves: Mapping[str, torch.Tensor],
    settings: _Settings,
    max_rank: int,
    dtype: torch.dtype,
) -> LowRank:
    E, rank = target.experts, settings.rank_of(target)
    if not 1 <= rank <= max_rank:
        raise _wrong(
            f"the rank of {target.name} is too {'large' if rank > 1 else 'small'}",
            got=f"{rank}",
            expected=f"1 to {max_rank}",
            fix="raise lora.max_rank" if rank > 1 else "",
        )
    shapes = {"A": (E * rank, target.inputs), "B": (target.outputs, rank * E)}
    for half, shape in shapes.items():
        if half not in halves:
            raise _wrong(f"{target.name} has no lora_{half}")
        if tuple(halves[half].shape) != shape:
            raise _wrong(
                f"lora_{half} of {target.name} does not fit the model",
                got=f"{list(halves[half].shape)}",
                expected=f"{list(shape)}: rank {rank}, {target.inputs} -> {target.outputs}"
                + (f", {E} experts" if target.parameter else ""),
                fix="serve the adapter beside the model that it was trained on",
            )
    b_OrE = halves["B"].float().view(target.outputs, rank, E) * settings.scaling(target)
    return LowRank(
        halves["A"].view(E, rank, target.inputs).to(dtype).contiguous(),
        b_OrE.permute(2, 1, 0).to(dtype).contiguous(),
    )


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default


def _wrong(what: str, *, got: str = "", expected: str = "", fix: str = "") -> InvalidAdapter:
    return InvalidAdapter(
        f"the adapter cannot be served: {what}",
        got=got,
        expected=expected,
        fix=fix,
        param="lora_path",
    )

"""Build a transformers MoE model without its memory, then give each rank what it keeps.

The model is made on the meta device, so that a family of any size costs nothing until its dense
parameters are sharded and its experts have owners. Initial values depend on the seed and on the
parameter's name (and expert id) only, never on the world size.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import JsonValue, model_validator
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hecate.config import Config
from hecate.errors import ConfigError, ModelError
from hecate.models.attention import choose_attention, register_packed_attention
from hecate.models.families import MoELayer

EXPERTS_IMPLEMENTATION = "hecate"

# What transformers raises for sizes that do not fit one another; it has no class for it.
_UNBUILDABLE = (
    RuntimeError,
    ArithmeticError,
    ValueError,
    TypeError,
    KeyError,
    ImportError,
    AttributeError,
)

# A family's defaults are ids of its own tokenizer, which a model from scratch does not have: its
# text would end at any token, and transformers trains no embedding of the padding token.
_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


class ModelConfig(Config):
    """Which model: a local Hugging Face folder, or a family with sizes of its own.

    ``sizes`` are fields of the family's transformers configuration class (``hidden_size``,
    ``num_hidden_layers``, ...); with ``path`` they override what the folder says, which is only
    sensible for fields that hold no weights. ``vocab_size`` defaults to the tokenizer's.
    """

    path: str = ""
    family: str = ""
    sizes: dict[str, JsonValue] = {}
    attention: Literal["auto", "packed", "sdpa", "eager"] = "auto"

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if bool(self.path) == bool(self.family):
            raise ValueError("set exactly one of path (a local folder) and family (from scratch)")
        return self


def hf_config(config: ModelConfig, *, vocab_size: int) -> Any:
    """The transformers configuration that ``config`` describes (``PreTrainedConfig``).

    Raises ``ConfigError`` for an unknown family, an unknown size or one that the family refuses,
    and ``ModelError`` for a folder without a configuration that transformers knows.
    """
    folder = Path(config.path).expanduser()
    plain = _folder_config(folder) if config.path else _family_config(config.family)
    cls = type(plain)
    known = set(vars(plain)) | set(cls.attribute_map) | set(cls.__annotations__)
    given: dict[str, str] = {}
    for key in config.sizes:
        other = given.setdefault(cls.attribute_map.get(key, key), key)
        if other != key:
            raise ConfigError(
                f"model.sizes sets one field of {cls.__name__} twice",
                got=f"{other} and {key}, two names of it",
                fix="keep one of them",
            )
        if key not in known and not _read_by_family(cls, key):
            raise ConfigError(
                f"model.sizes.{key} is not a field of {cls.__name__}",
                got=key,
                expected=_nearest(key, known),
                fix="correct its name under model.sizes, or leave it out",
            )
    try:
        if config.path:
            return AutoConfig.from_pretrained(folder, local_files_only=True, **config.sizes)
        return cls(**{"vocab_size": vocab_size, **_NO_TOKENS, **config.sizes})
    except (StrictDataclassError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise ConfigError(
            f"{cls.__name__} refuses model.sizes",
            got=" ".join(str(error).split()),
            fix="correct the values under model.sizes",
        ) from error


def _folder_config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path {folder} is not a Hugging Face folder",
            got="no config.json in it" if folder.is_dir() else "no such folder",
            expected="a folder with config.json and safetensors weights",
            fix="set model.path to a local folder, or model.family to train from scratch",
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"transformers cannot read {folder / 'config.json'}",
            got=str(error).partition("\n\n")[0],
            expected="a family that the installed transformers has code for",
            fix="check the file, or upgrade transformers if the family is newer than it",
        ) from error


def _family_config(family: str) -> Any:
    if family not in CONFIG_MAPPING or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            "model.family names no causal language model of transformers",
            got=family,
            expected=_nearest(family, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
            fix="choose a MoE family such as qwen3_moe, mixtral, olmoe, deepseek_v3 or gpt_oss",
        )
    return CONFIG_MAPPING[family]()


def _read_by_family(config_class: type, key: str) -> bool:
    """Whether the family's modeling code reads a field that its configuration never declares.

    ``head_dim`` of several families is such a field: read with a default, set by the hub's files.
    """
    package = config_class.__module__.rpartition(".")[0]
    spec = importlib.util.find_spec(f"{package}.modeling_{package.rpartition('.')[2]}")
    if spec is None or spec.origin is None:
        return False
    source = Path(spec.origin).read_text(encoding="utf-8")
    return (
        re.search(rf"config\.{re.escape(key)}\b|config, [\"']{re.escape(key)}[\"']", source)
        is not None
    )


def _nearest(word: str, choices: Any) -> str:
    close = difflib.get_close_matches(word, sorted(choices), n=3, cutoff=0.5)
    return "perhaps " + " or ".join(close) if close else "one of " + ", ".join(sorted(choices)[:40])


def build_meta_model(
    config: ModelConfig, *, vocab_size: int, device_type: str = "cpu"
) -> PreTrainedModel:
    """The model on the meta device, its experts routed through Hecate's implementation.

    Nothing is allocated: parameters and buffers have shapes only. ``device_type`` is where it is
    going to run, which decides the attention.
    """
    return meta_model(
        hf_config(config, vocab_size=vocab_size),
        attention=config.attention,
        device_type=device_type,
    )


def meta_model(
    config: Any,
    *,
    attention: Literal["auto", "packed", "sdpa", "eager"] = "auto",
    device_type: str = "cpu",
) -> PreTrainedModel:
    """The causal language model of a transformers configuration, on the meta device."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, through_runtime)
    register_packed_attention()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=torch.float32,
                attn_implementation="eager",
                experts_implementation=EXPERTS_IMPLEMENTATION,
            )
            model.set_attn_implementation(choose_attention(model, attention, device_type))
    except _UNBUILDABLE as error:
        raise ModelError(
            f"transformers cannot build a {config.model_type} model of these sizes",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="check model.sizes against the family's configuration class",
        ) from error
    assert isinstance(model, PreTrainedModel)
    return model


def through_runtime(
    module: nn.Module,
    x_TD: torch.Tensor,
    top_k_index_TK: torch.Tensor,
    top_k_weights_TK: torch.Tensor,
) -> torch.Tensor:
    """The experts implementation: hand over to the runtime that owns the module's experts."""
    runtime = getattr(module, "runtime", None)
    if runtime is None:
        raise ModelError(
            f"the experts of {type(module).__name__} have no runtime",
            fix="call hecate.fssdp.shard_experts(model, ...) before the forward pass",
        )
    result: torch.Tensor = runtime(x_TD, top_k_index_TK, top_k_weights_TK)
    return result


def initial_dense(
    model: PreTrainedModel, layers: tuple[MoELayer, ...], seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Initial value of every dense parameter and every buffer: (name, full CPU tensor).

    The family's own ``_init_weights`` runs on a stand-in for one module at a time.
    """
    experts = {layer.name for layer in layers}
    done: set[int] = set()
    for name, module in model.named_modules():
        if name in experts or not (module._parameters or module._buffers):
            continue
        shapes = {n: tuple(p.shape) for n, p in module._parameters.items() if p is not None}
        stand_in = _stand_in(module, shapes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, name))
            _family_init(model, stand_in)
        for own, tensor in {**stand_in._parameters, **stand_in._buffers}.items():
            original = module._parameters.get(own, module._buffers.get(own))
            if tensor is None or id(original) in done:
                continue
            done.add(id(original))
            yield f"{name}.{own}" if name else own, tensor.detach()


def initial_expert(
    model: PreTrainedModel, layer: MoELayer, expert_id: int, seed: int
) -> dict[str, torch.Tensor]:
    """Initial value of one expert: its tensors by name, each of ``layer.layout``'s shape."""
    stand_in = _stand_in(
        model.get_submodule(layer.name), {t.name: (1, *t.shape) for t in layer.layout.tensors}
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, f"{layer.name}.{expert_id}"))
        _family_init(model, stand_in)
    return {t.name: stand_in._parameters[t.name].detach()[0] for t in layer.layout.tensors}  # type: ignore[union-attr]


def _stand_in(module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A shallow copy of ``module`` with parameters of ``shapes`` and its buffers, on the CPU."""
    stand_in = copy.copy(module)
    absent = {n: None for n, p in module._parameters.items() if p is None}
    stand_in._parameters = {n: nn.Parameter(torch.zeros(s)) for n, s in shapes.items()} | absent
    stand_in._buffers = {
        n: None if b is None else torch.zeros(b.shape, dtype=b.dtype)
        for n, b in module._buffers.items()
    }
    return stand_in


def _family_init(model: PreTrainedModel, stand_in: nn.Module) -> None:
    owner = model
    for candidate in model.modules():
        if isinstance(candidate, PreTrainedModel) and any(
            type(child) is type(stand_in) for child in candidate.modules()
        ):
            owner = candidate  # the innermost sub-model knows how its own modules start
    with torch.no_grad():
        owner._init_weights(stand_in)


def seed_of(seed: int, name: str) -> int:
    """The seed of what is called ``name`` in a run of ``seed``."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")

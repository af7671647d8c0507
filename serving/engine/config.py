"""Which model an engine answers with, and what it may use for it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hecate.config import Config
from serving.lora.config import LoraConfig
from serving.scheduling.config import SchedulingConfig


class MemoryConfig(Config):
    """``kv_gib``: memory for keys and values, in blocks of ``block_tokens`` tokens.

    ``swap_gib``: of the host's memory, for those of answers that gave way to more urgent ones; what
    finds no room there is computed again, and everything with 0. ``swap``: where copying them costs
    less than computing them again, as measured (``cheaper``), or ``always``.

    ``host_prefix_gib``: of the host's memory, for what the prefix cache has to give up on the
    device; 0 for none.
    """

    kv_gib: float = Field(default=1.0, gt=0)
    block_tokens: int = Field(default=16, ge=1)
    prefix: Literal["radix", "none"] = "radix"
    swap_gib: float = Field(default=0.0, ge=0)
    swap: Literal["cheaper", "always"] = "cheaper"
    host_prefix_gib: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _swaps_somewhere(self) -> Self:
        if self.swap == "always" and not self.swap_gib:
            raise ValueError("swap always has no effect with swap_gib 0; set swap_gib too")
        if self.host_prefix_gib and self.prefix != "radix":
            raise ValueError(
                f"host_prefix_gib has no effect with prefix {self.prefix}; set prefix radix"
            )
        return self


class EngineConfig(Config):
    """``model``: a Hugging Face folder. ``name``: what it is served under; the folder's by default.

    ``dtype`` ``auto`` is the folder's. ``max_tokens``: prompt and answer together; 0 for all that
    the model attends to. ``max_waiting``: answers beyond ``scheduling.max_sequences`` that are
    admitted; more are refused as ``Overloaded``. ``threads``: of torch in the engine; 0 for one a
    core. ``kernels`` ``auto``: compiled ones on a CPU, for families that they know; ``off``: the
    model's own code. ``share_weights``: replicas on a CPU share those that are packed for kernels;
    ``auto``: where the kernel gives large pages for that, without which decoding is slower.
    ``stall_s``: how long a step may take before the engine counts as dead.
    """

    model: str
    name: str = ""
    kind: Literal["native", "vllm"] = "native"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_tokens: int = Field(default=0, ge=0)
    max_waiting: int = Field(default=256, ge=0)
    threads: int = Field(default=0, ge=0)
    kernels: Literal["auto", "off"] = "auto"
    share_weights: Literal["auto", "on", "off"] = "auto"
    stall_s: float = Field(default=120.0, gt=0)
    memory: MemoryConfig = MemoryConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    lora: LoraConfig = LoraConfig()

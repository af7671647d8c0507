"""LoRA (2106.09685): a frozen model, and low-rank adapters beside its projections that train.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | decides | the user's settings |
| linear.py | executes | attention's linear layers -> layers with an adapter |
| experts.py | decides | a layer of experts -> what of each expert is frozen, what trains |
| initial.py | executes | the seed and a name -> an adapter's first values |
| share.py | decides | a model and its adapters -> how much of it trains |
| peft_format.py | decides | adapters -> the names and layouts that PEFT reads |
"""

from hecate.models.lora.config import LoraConfig
from hecate.models.lora.experts import AdaptedLayer, adapted_layers
from hecate.models.lora.linear import AdaptedLinear, adapt_linears, is_adapter

__all__ = [
    "AdaptedLayer",
    "AdaptedLinear",
    "LoraConfig",
    "adapt_linears",
    "adapted_layers",
    "is_adapter",
]

"""What clients send, as OpenAI names it, checked strictly; unknown fields are errors.

| file | decides or executes | in -> out |
|---|---|---|
| body.py | decides | what every body has |
| sampled.py | decides | what completions and chats have in common |
| completions.py | decides | `/v1/completions` |
| chat.py | decides | `/v1/chat/completions` |
| embeddings.py | decides | `/v1/embeddings` |
| applications.py | decides | `/v1/applications/units` and `/v1/applications/end` |
| adapters.py | decides | `/v1/load_lora_adapter` and its opposite, in vLLM's names |
"""

from serving.api.schemas.adapters import LoadAdapterBody, UnloadAdapterBody
from serving.api.schemas.applications import InstanceBody, UnitBody
from serving.api.schemas.chat import ChatBody, Message, NamedTool, Tool
from serving.api.schemas.completions import CompletionBody
from serving.api.schemas.embeddings import EmbeddingBody
from serving.api.schemas.sampled import SampledBody

__all__ = [
    "ChatBody",
    "CompletionBody",
    "EmbeddingBody",
    "InstanceBody",
    "LoadAdapterBody",
    "Message",
    "NamedTool",
    "SampledBody",
    "Tool",
    "UnitBody",
    "UnloadAdapterBody",
]

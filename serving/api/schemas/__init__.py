"""What clients send, as OpenAI names it, checked strictly; unknown fields are errors."""

from serving.api.schemas.chat import ChatBody, Message, Tool
from serving.api.schemas.completions import CompletionBody
from serving.api.schemas.embeddings import EmbeddingBody
from serving.api.schemas.sampled import SampledBody

__all__ = ["ChatBody", "CompletionBody", "EmbeddingBody", "Message", "SampledBody", "Tool"]

"""What the HTTP side of serving is told."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config
from serving.api.tenants import QuotaConfig


class ApiConfig(Config):
    """``keys_file``: tenants and digests of their keys; ``keys_variable``: the environment variable
    that may hold more of them, as ``NAME:KEY,NAME:KEY``. Without any key everybody may ask.

    ``load_adapters``: whether requests may load and unload adapters, by folders of the machines
    that serve; a watched folder does without.

    ``log_prompts``: whether what is asked and answered is logged too, which is nobody's business.
    """

    keys_file: str = ""
    keys_variable: str = "HECATE_API_KEYS"
    quota: QuotaConfig = QuotaConfig()
    load_adapters: bool = True
    log_prompts: bool = False
    max_body_bytes: int = Field(default=16 << 20, gt=0)

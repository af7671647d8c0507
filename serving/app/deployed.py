"""The app for a cluster that is told in Ray Serve's own words what to serve, as KubeRay tells one:

applications:
  - name: hecate
    import_path: serving.app.deployed:app
    args: {engine: {model: /work/model}}
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hecate.config import Config, parse_config
from serving.api import ApiConfig, Prompts
from serving.app.builder import build_app
from serving.app.config import AppConfig, HttpConfig, IngressConfig, ReplicasConfig
from serving.engine.build import build_engine
from serving.engine.config import EngineConfig


class DeployedConfig(Config):
    """``args`` of the application: a ``ServingConfig`` without what the cluster has decided, which
    is where Ray runs and that its proxies listen."""

    engine: EngineConfig
    api: ApiConfig = ApiConfig()
    ingress: IngressConfig = IngressConfig()
    replicas: ReplicasConfig = ReplicasConfig()


def app(args: Mapping[str, Any]) -> Any:
    """The application, of a Hugging Face folder that all machines see under the same path.

    Raises ``ConfigError`` and ``TokenizerError``.
    """
    config = parse_config(DeployedConfig, args, "args")
    folder = Path(config.engine.model)
    Prompts.of_folder(folder)  # its error here, where whoever deploys gets to see it
    engine = config.engine.model_copy(update={"name": config.engine.name or folder.name})
    rest = AppConfig(
        http=HttpConfig(through="proxy"),
        api=config.api,
        ingress=config.ingress,
        replicas=config.replicas,
    )
    return build_app(rest, partial(build_engine, engine), folder)

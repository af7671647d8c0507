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
from serving.app.config import (
    HttpConfig,
    IngressConfig,
    ReplicasConfig,
    ServingConfig,
    WandbConfig,
)
from serving.applications import ApplicationsConfig
from serving.engine.build import build_engine
from serving.engine.config import EngineConfig


class DeployedConfig(Config):
    """``args`` of the application: a ``ServingConfig`` without what the cluster has decided, which
    is where Ray runs and that its proxies listen."""

    engine: EngineConfig
    api: ApiConfig = ApiConfig()
    ingress: IngressConfig = IngressConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    applications: ApplicationsConfig = ApplicationsConfig()
    wandb: WandbConfig = WandbConfig()


def app(args: Mapping[str, Any]) -> Any:
    """The application, of a Hugging Face folder that all machines see under the same path.

    Raises ``ConfigError`` and ``TokenizerError``.
    """
    given = parse_config(DeployedConfig, args, "args")
    folder = Path(given.engine.model)
    Prompts.of_folder(folder)  # its error here, where whoever deploys gets to see it
    engine = given.engine.model_copy(update={"name": given.engine.name or folder.name})
    config = ServingConfig(
        engine=engine,
        http=HttpConfig(through="proxy"),
        api=given.api,
        ingress=given.ingress,
        replicas=given.replicas,
        applications=given.applications,
        wandb=given.wandb,
    )
    return build_app(config, partial(build_engine, engine), folder)

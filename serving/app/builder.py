"""The composition root of serving: a configuration and an engine become a Ray Serve application."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from serving.api.tenants import read_keys
from serving.app.autoscaling import LoadPolicy
from serving.app.config import AppConfig, ReplicasConfig, ServingConfig
from serving.app.ingress import ListeningIngress, ProxiedIngress
from serving.app.recorder import RecorderReplica
from serving.app.replica import EngineReplica
from serving.app.router import PlacementRouter
from serving.engine.protocol import Engine
from serving.lora.profile import read_profile

# Serve never queues: what is too much, the engine refuses, since it alone knows.
UNBOUNDED = 1_000_000
STATS_S = 0.5
STALE_S = 10 * STATS_S


def build_app(config: AppConfig, make_engine: Callable[[], Engine], folder: Path) -> Any:
    """The application, not run yet. ``make_engine`` is called in each replica; ``folder`` holds the
    tokenizer on every machine. Raises ``ConfigError``."""
    keys = read_keys(
        config.api.keys_file,
        os.environ.get(config.api.keys_variable, ""),
        config.api.quota,
    )
    config.applications.chosen(config.ingress.replicas)
    replicas = config.replicas
    engines = serve.deployment(EngineReplica).options(
        name="engine",
        autoscaling_config=_autoscaling(replicas),
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        max_ongoing_requests=UNBOUNDED,
        graceful_shutdown_timeout_s=replicas.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=replicas.health_period_s,
        request_router_config=RequestRouterConfig(
            request_router_class=PlacementRouter,
            request_router_kwargs=_routing(replicas),
            request_routing_stats_period_s=STATS_S,
        ),
    )
    speaks_http = ListeningIngress if config.ingress_listens else serve.ingress()(ProxiedIngress)
    ingress = serve.deployment(speaks_http).options(
        name="ingress",
        num_replicas=config.ingress.replicas,
        ray_actor_options={"num_cpus": config.ingress.num_cpus},
        max_ongoing_requests=UNBOUNDED,
        graceful_shutdown_timeout_s=replicas.drain_s,
        health_check_period_s=replicas.health_period_s,
    )
    recorder = None
    if config.wandb.mode != "off":
        named = isinstance(config, ServingConfig) and config.engine.name
        recorder = (
            serve.deployment(RecorderReplica)
            .options(name="recorder", ray_actor_options={"num_cpus": 0})
            .bind(config.wandb, named or folder.name, config.model_dump(mode="json"))
        )
    # They tell twice for each row, so that every row has news.
    bound = engines.bind(make_engine, recorder, config.wandb.every_s / 2)
    return ingress.bind(bound, config, keys, str(folder))


def _routing(replicas: ReplicasConfig) -> dict[str, Any]:
    """What ``PlacementRouter`` is told."""
    steps = {}
    if replicas.step_model:
        steps = asdict(read_profile(Path(replicas.step_model).expanduser()).steps)
    return {
        "policy": replicas.policy,
        "steps": steps,
        "slo_s": replicas.token_slo_s,
        "stale_s": STALE_S,
    }


def _autoscaling(replicas: ReplicasConfig) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=replicas.min,
        initial_replicas=replicas.min,
        max_replicas=replicas.max,
        upscale_delay_s=replicas.upscale_delay_s,
        downscale_delay_s=replicas.downscale_delay_s,
        metrics_interval_s=2.0,
        look_back_period_s=5.0,
        policy=AutoscalingPolicy(
            policy_function=LoadPolicy,
            policy_kwargs={
                "target_waiting": replicas.target_waiting,
                "target_tokens": replicas.target_tokens,
            },
        ),
    )

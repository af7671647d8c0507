"""The serving app on Ray Serve: ingresses that speak HTTP, and engines as replicas.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | - | what the app is told beside its engine |
| messages.py | - | what ingress and replicas tell each other |
| backlog.py | decides | requests, deltas -> what a replica has to do yet |
| placement.py | decides | reports, what was sent -> the order in which replicas are tried |
| router.py | executes | `placement` as Ray Serve's request router |
| autoscaling.py | decides | what waits, tokens in flight -> how many replicas |
| desk.py | executes | requests of each ingress -> an engine; one message for each step |
| replica.py | executes | an engine and its desk -> a replica |
| replicas.py | executes | all replicas -> the `Backend` of an ingress |
| links.py | executes | an ingress's own connections to replicas -> their steps |
| calls.py | - | what calls of Ray Serve's raise when they are lost |
| wire.py | executes | values -> another process that knows the secret |
| latency.py | decides | a replica's deltas -> how long its answers take |
| figures.py | decides | how replicas are and were -> rows of charts |
| recorder.py | executes | what replicas tell -> Weights & Biases |
| adapters.py | executes | adapters that requests load -> all replicas, later ones too |
| ingress.py | executes | a backend -> HTTP |
| listener.py | executes | HTTP without a proxy of Ray's |
| logs.py | executes | what a replica logs -> Ray Serve's log of it |
| builder.py | executes | a configuration and an engine -> a Ray Serve application |
| deployed.py | executes | a cluster's own Serve configuration -> the same application |
| launch.py | executes | a configuration -> the app, until somebody stops it |
"""

from serving.app.builder import build_app
from serving.app.config import AppConfig, ServingConfig
from serving.app.launch import serve_until_stopped, stopped_by_signals

__all__ = [
    "AppConfig",
    "ServingConfig",
    "build_app",
    "serve_until_stopped",
    "stopped_by_signals",
]

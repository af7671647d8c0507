"""What Prometheus reads: each HTTP request here, and how busy each engine is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.engine.protocol import EngineLoad

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

Loads = Callable[[], Sequence[tuple[str, EngineLoad]]]
Figures = Callable[[], Mapping[str, float]]


class Metrics:
    """Of one ingress; ``loads``, and ``figures`` of applications, are asked for when somebody
    reads."""

    def __init__(self, loads: Loads, figures: Figures) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineLoads(loads))
        self.registry.register(_Applications(figures))
        self.requests = Counter(
            "hecate_http_requests",
            "HTTP requests by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self.first_token_s = Histogram(
            "hecate_time_to_first_token_seconds",
            "From a request's arrival to the first token of its answer",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.token_s = Histogram(
            "hecate_time_per_output_token_seconds",
            "Between the first and the last token of an answer, for each",
            buckets=TOKEN_SECONDS,
            registry=self.registry,
        )
        self.request_s = Histogram(
            "hecate_request_seconds",
            "From a request's arrival to the end of its answer",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineLoads(Collector):
    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def collect(self) -> Iterable[Metric]:
        loads = self._loads()
        for each in fields(EngineLoad):
            family: Metric
            name = f"hecate_engine_{each.name.removesuffix('_total')}"
            text = each.name.replace("_", " ")
            if each.name.endswith("_total") and each.name != "blocks_total":
                counter = CounterMetricFamily(name, text, labels=["replica"])
                for replica, load in loads:
                    counter.add_metric([replica], getattr(load, each.name))
                family = counter
            else:
                gauge = GaugeMetricFamily(f"hecate_engine_{each.name}", text, labels=["replica"])
                for replica, load in loads:
                    gauge.add_metric([replica], getattr(load, each.name))
                family = gauge
            yield family


class _Applications(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        for name, value in self._figures().items():
            text = f"applications: {name.removesuffix('_total').replace('_', ' ')}"
            full = f"hecate_applications_{name}"
            if name.endswith("_total"):
                yield CounterMetricFamily(full, text, value=value)
            else:
                yield GaugeMetricFamily(full, text, value=value)

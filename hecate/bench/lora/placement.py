"""Where requests with adapters go: every policy on real replicas, and on many simulated ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hecate.bench.lora.engines import Job
from hecate.bench.lora.placed import Fleet, Placed, place
from hecate.bench.lora.replicas import REPLICAS, Site, serve
from hecate.bench.lora.workload import Ask, arrivals, rank_of
from hecate.bench.report import Row
from serving.bench.steps import profile
from serving.engine.config import EngineConfig, MemoryConfig
from serving.lora.config import LoraConfig
from serving.lora.placement import Placement, RankAware, baselines
from serving.lora.profile import Profile
from serving.lora.step_model import StepModel
from serving.scheduling.config import SchedulingConfig

SIMULATED = 60
RANK_AWARE = "rank_aware"
PROMPT, ANSWER = 64, 16  # short, so that a load is no small part of an answer
MOST = 16  # answers at once, of a replica
LOAD = 0.5  # of what replicas could answer if they had every adapter
OBJECTIVE = 2.0  # times what a token takes of an answer alone, its adapter on the device
HOST_CACHE_MIB = 512


@dataclass(frozen=True)
class PlacementFigures:
    """What a report gets of it."""

    rows: tuple[Row, ...]
    summary: Mapping[str, float]
    notes: tuple[str, ...]


def measure_placement(
    job: Job,
    shares: Sequence[float],
    folder: Path,
    *,
    slots: int,
    throttle_ms: float,
    simulated: int,
    real: int,
    say: Callable[[str], None],
) -> PlacementFigures:
    """``simulated`` requests to 60 replicas, ``real`` ones to two; adapters as popular as
    ``shares``, ``slots`` on the device of each replica. ``folder``: for files."""
    engine = EngineConfig(
        model=str(job.model),
        dtype=job.dtype,
        device="cpu",
        threads=1,
        max_waiting=4096,
        memory=MemoryConfig(kv_gib=0.5, prefix="none"),
        scheduling=SchedulingConfig(max_sequences=MOST),
        lora=LoraConfig(slots=slots, host_cache_mib=HOST_CACHE_MIB, throttle_ms=throttle_ms),
    )
    profiled = asyncio.run(profile(engine, say))
    model = profiled.steps
    slo_s = OBJECTIVE * (model.prefill([(PROMPT, 32)]) / ANSWER + model.decode([32]))
    policies = {RANK_AWARE: lambda: RankAware(model, slo_s)} | dict(
        baselines(random.Random(0).shuffle)
    )
    few = _asks(real, REPLICAS, model, shares, seed=4)
    many = _asks(simulated, SIMULATED, model, shares, seed=3)
    site = Site(engine, job.adapters[0].parent, profiled, job.vocabulary)
    rows: list[Row] = [_fits(profiled)]
    attained: dict[str, dict[str, float]] = {"real": {}, "simulated": {}}
    for name, policy in policies.items():
        served = serve(few, name, site, folder, prompt=PROMPT, answer=ANSWER, slo_s=slo_s)
        say(f"{name}: {served.attained:.0%} of {real} requests met {slo_s * 1000:.0f} ms a token")
        alike = _simulate(few, policy(), model, REPLICAS, slots, slo_s)
        wide = _simulate(many, policy(), model, SIMULATED, slots, slo_s)
        rows += [
            _row(name, f"{REPLICAS} real", served, simulated=False),
            _row(name, f"{REPLICAS} simulated, the same requests", alike, simulated=True),
            _row(name, f"{SIMULATED} simulated", wide, simulated=True),
        ]
        attained["real"][name], attained["simulated"][name] = served.attained, wide.attained
    return PlacementFigures(
        tuple(rows),
        {
            "slo_attainment": attained["simulated"][RANK_AWARE],
            "slo_attainment_real": attained["real"][RANK_AWARE],
        },
        (
            f"placement: prompts of {PROMPT} tokens, answers of {ANSWER}, {slots} slots a replica; "
            f"the objective is {slo_s * 1000:.1f} ms a token from a request's arrival to its end, "
            f"{OBJECTIVE:g} times what it takes alone with a resident adapter of rank 32; requests "
            f"come at {LOAD:.0%} of what replicas with every adapter could answer",
            f"{REPLICAS} real replicas are of hecate serve, one thread each, on the cores that Ray "
            "and who sends have too; simulated ones have the steps measured here",
        ),
    )


def _asks(
    count: int, replicas: int, model: StepModel, shares: Sequence[float], *, seed: int
) -> list[Ask]:
    """Arrivals at ``LOAD`` of what so many replicas can do."""
    ranks = (share * rank_of(number) for number, share in enumerate(shares))
    rank = round(sum(ranks))
    each_s = model.prefill([(PROMPT, rank)]) + ANSWER * model.decode([rank] * MOST) / MOST
    return arrivals(count, LOAD * replicas / each_s, shares, random.Random(seed).random)


def _simulate(
    asks: Sequence[Ask],
    policy: Placement,
    model: StepModel,
    replicas: int,
    slots: int,
    slo_s: float,
) -> Placed:
    fleet = Fleet(replicas, MOST, slots)
    return place(asks, policy, model, fleet, prompt=PROMPT, answer=ANSWER, slo_s=slo_s)


def _row(name: str, where: str, placed: Placed, *, simulated: bool) -> Row:
    return {
        "what": f"placement: {name}, {where}",
        "whole_ms": placed.token_s * 1000 * ANSWER,
        "cold": placed.cold,
        "attained": placed.attained,
        "simulated": simulated,
    }


def _fits(profiled: Profile) -> Row:
    return {
        "what": "step model, R2 of decode",
        "ratio": profiled.r2.decode,
        **profiled.model_dump(mode="json"),
    }

"""``hecate bench network``: two nodes of two ranks, joined by a link that is the bottleneck.

What the hierarchical transport and plans that know the nodes save on that link: bytes, by the
counters of its ends and by the schedule, and time. Latency is the machine's own, hardly any.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from pydantic import JsonValue

from collectives.cost import lambda_share, traffic
from collectives.placement import Placement
from collectives.schedule import Change, gather_schedule
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS
from hecate.bench.copies import GATHERED, SKIPPED, Alone
from hecate.bench.crew import PRELOAD, Crew, usable_cores
from hecate.bench.margins import hidden_fraction
from hecate.bench.namespaces import Node, NoNamespaces, two_nodes
from hecate.bench.node_ranks import (
    AWARE,
    BLIND,
    Collectives,
    HiddenOverLink,
    NodeRank,
    Passes,
    TrainingSteps,
    run_on_node,
)
from hecate.bench.replay import counted
from hecate.bench.report import BenchOptions, Report, Row
from hecate.bench.routing_traces import Shares, hot_pair, hot_rank, skewed
from hecate.bench.workloads import DEMO, Workload

RATE_MBIT = 500
RANKS_PER_NODE = 2
WORLD = 2 * RANKS_PER_NODE
CHUNK_BYTES = 2 << 20
COPIED = 2  # experts of each layer, which attention is long enough to hide over this link
MIB = 1 << 20
TIMEOUT_S = 120.0

COLUMNS = {
    "what": "what",
    "case": "case",
    "by": "by",
    "ms": "ms",
    "quartiles_ms": "quartiles",
    "across_mib": "over the link MiB",
    "schedule_mib": "by schedule MiB",
    "over_flat": "time / flat's",
    "hidden_fraction": "hidden",
    "status": "status",
}
NOTES = (
    "4 ranks share the machine's cores, but the hidden rows have 2, on a core each; the link "
    f"carries {RATE_MBIT} Mbit/s each way (tbf), which is less than what the ranks can send: "
    "the link is the bottleneck. Latency is not emulated.",
    "over the link: what the busier node sent in one pass, by the counter of its interface. Of a "
    "step it counts the dense parameters and the tokens too.",
    "flat: p2p, one message for each new holder. blind: the same trainer with all ranks on one "
    "node; aware: it knows the nodes, in its copies, its dispatch and its transport.",
    "hidden: the part of the gathers' time alone that a step with them does not show beside the "
    "same step without; here the link is the limit, and no core has to copy as fast as it can.",
)

FLAT, TWO_LEVEL = "p2p", "hierarchical"
# Eight chunks, two to a rank, and who holds them afterwards.
OWNERS = Placement.even(2 * WORLD, WORLD)
EVERYONE = tuple(range(WORLD))


def _copied(copies: Mapping[int, tuple[int, ...]]) -> Change:
    holders = tuple(
        tuple(sorted({*own, *copies.get(chunk, ())})) for chunk, own in enumerate(OWNERS.holders)
    )
    return Change(OWNERS, Placement(holders, WORLD), CHUNK_BYTES)


CASES = {
    "one of each rank to all": _copied({chunk: EVERYONE for chunk in (0, 2, 4, 6)}),
    "all of node 0 to all": _copied({chunk: EVERYONE for chunk in (0, 1, 2, 3)}),
    "one copy of each": _copied({0: (2,), 2: (3,), 4: (0,), 6: (1,)}),
}
MAIN_CASE = next(iter(CASES))
NODES = Topology((0, 0, 1, 1), inside=Link(1.0, 0.0), across=Link(1.0, 0.0))

# The demo's model under one policy and one trace; loads are the same in every step, and others in
# every layer.
STEP = replace(DEMO, name="demo")
TRACES: dict[str, Callable[[int, int], Shares]] = {
    "two hot experts": lambda experts, layer: hot_pair(experts, layer, 0.75),
    "skewed": lambda experts, layer: skewed(experts, layer, 1.2),
    "hot rank": lambda experts, layer: hot_rank(experts, WORLD, layer, 3.0),
}
# Summary key's ending -> policy, trace.
STEPS = {
    "": ("fssdp", "two hot experts"),
    "_skewed": ("fssdp", "skewed"),
    "_hot_rank": ("fssdp", "hot rank"),
    "_fsdp": ("fsdp", "hot rank"),
}


@dataclass(frozen=True)
class Pace:
    collective_passes: int
    step_passes: int
    step_warm_up: int
    hidden_passes: int  # two steps differ by as much as gathers take: it needs many of them


QUICK = Pace(collective_passes=7, step_passes=5, step_warm_up=2, hidden_passes=20)
WHOLE = Pace(collective_passes=25, step_passes=20, step_warm_up=3, hidden_passes=50)


def bench_network(options: BenchOptions) -> Report:
    """Raises ``ContenderError`` when a rank fails; without namespaces, one row says why."""
    pace = QUICK if options.quick else WHOLE
    settings: dict[str, JsonValue] = {
        "rate_mbit": RATE_MBIT,
        "ranks_per_node": RANKS_PER_NODE,
        "chunk_bytes": CHUNK_BYTES,
        "dtype": "float32",
        "collective_passes": pace.collective_passes,
        "step_passes": pace.step_passes,
        "hidden_passes": pace.hidden_passes,
    }
    try:
        with two_nodes(RATE_MBIT) as nodes:
            with ranks_on(nodes) as crew:
                rows = [*collective_rows(crew, pace), *step_rows(crew, pace, STEP)]
            with ranks_on(nodes, ranks_per_node=1, cores=usable_cores()) as crew:
                rows += hidden_rows(crew, pace, STEP)
    except NoNamespaces as error:
        text = f"not run: {error.what} ({error.got})"
        return Report("network", settings, COLUMNS, ({"what": "two nodes", "status": text},), {})
    return Report("network", settings, COLUMNS, tuple(rows), summarise(rows), NOTES)


@contextmanager
def ranks_on(
    nodes: Sequence[Node], ranks_per_node: int = RANKS_PER_NODE, cores: Sequence[int] = ()
) -> Iterator[Crew]:
    """Ranks on each node that do tasks; gone at the end, whatever happens.

    ``cores``: one for each rank, to which it is bound; anywhere where they are not enough.
    """
    world = len(nodes) * ranks_per_node
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    processes: list[BaseProcess] = []
    connections: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as folder:
        logs = [Path(folder, f"{rank}.log") for rank in range(world)]
        crew = Crew("network", processes, connections, logs, TIMEOUT_S)
        try:
            for rank in range(world):
                ours, theirs = server.Pipe()
                place = NodeRank(
                    rank=rank,
                    world_size=world,
                    ranks_per_node=ranks_per_node,
                    node=nodes[rank // ranks_per_node],
                    cores=tuple(cores[rank : rank + 1]) if len(cores) >= world else (),
                    store_address=nodes[0].address,
                    log=logs[rank],
                    timeout_s=TIMEOUT_S,
                )
                process = server.Process(target=run_on_node, args=(theirs, place), daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                connections.append(ours)
            yield crew
        finally:
            crew.kill()


def collective_rows(crew: Crew, pace: Pace) -> list[Row]:
    rows: list[Row] = []
    for case, change in CASES.items():
        for kind in ("gather", "reduction"):
            task = Collectives(kind, change, tuple(sorted(TRANSPORTS)), pace.collective_passes)
            taken: list[dict[str, Passes]] = crew.do(task, timeout_s=300)
            for name in sorted(TRANSPORTS):
                row = _row(kind, case, name, taken, against=FLAT)
                row["lambda"] = lambda_share(change)
                if name != "broadcast":  # gloo's own trees, which no schedule of ours describes
                    row["schedule_mib"] = _scheduled_bytes(name, change) / MIB
                rows.append(row)
    return rows


def step_rows(crew: Crew, pace: Pace, workload: Workload) -> list[Row]:
    layers, experts, top_k = (
        int(str(workload.sizes[name]))
        for name in ("num_hidden_layers", "num_experts", "num_experts_per_tok")
    )
    rows: list[Row] = []
    # what a copy costs is measured anew, and kept for this comparison alone
    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as cache:
        for policy, trace in STEPS.values():
            counts_SYE = counted(
                lambda step, layer, trace=trace: TRACES[trace](experts, layer),  # type: ignore[misc]
                steps=pace.step_warm_up + pace.step_passes,
                layers=layers,
                num_tokens=workload.tokens_per_step // WORLD,
                top_k=top_k,
            )
            task = TrainingSteps(
                workload, policy, cache, counts_SYE, pace.step_passes, pace.step_warm_up
            )
            taken: list[dict[str, Passes]] = crew.do(task, timeout_s=600)
            case = f"{policy}, {trace}"
            rows += [_row("step", case, name, taken, against=BLIND) for name in (AWARE, BLIND)]
    return rows


def hidden_rows(crew: Crew, pace: Pace, workload: Workload) -> list[Row]:
    """Steps with and without their gathers, and the gathers alone, where the link is the limit.

    ``crew``: one rank on each node.
    """
    layers = int(str(workload.sizes["num_hidden_layers"]))
    experts = int(str(workload.sizes["num_experts"]))
    counts_YE = counted(
        lambda step, layer: TRACES["two hot experts"](experts, layer),
        steps=1,
        layers=layers,
        num_tokens=workload.tokens_per_step // 2,
        top_k=workload.top_k,
    )[0]
    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as cache:
        task = HiddenOverLink(
            workload, cache, counts_YE, COPIED, pace.hidden_passes, pace.step_warm_up
        )
        ranks: list[tuple[dict[str, Passes], tuple[Alone, ...]]] = crew.do(task, timeout_s=600)
    taken = [passes for passes, _ in ranks]
    alone_of_rank = [[each.seconds for each in alone] for _, alone in ranks]
    case = f"{COPIED} experts of each layer to all"
    steps = {
        name: _row("hidden", case, name, taken, against=SKIPPED) for name in (GATHERED, SKIPPED)
    }
    alone_s = [max(seconds) for seconds in zip(*alone_of_rank, strict=True)]
    step_s, skipped_s = (_slowest_s(taken, name) for name in (GATHERED, SKIPPED))
    steps[GATHERED]["hidden_fraction"] = round(hidden_fraction(step_s, skipped_s, alone_s), 3)
    low_s, _, high_s = statistics.quantiles(alone_s, n=4)
    alone: Row = {
        "what": "hidden",
        "case": case,
        "by": "gathers alone",
        "ms": round(1e3 * statistics.median(alone_s), 2),
        "quartiles_ms": f"{1e3 * low_s:.1f}-{1e3 * high_s:.1f}",
        "status": "",
    }
    return [*steps.values(), alone]


def _scheduled_bytes(transport: str, change: Change) -> int:
    """What the busier node sends to the other in a gather or, as a mirror, receives."""
    hierarchical = TRANSPORTS[transport].hierarchical
    schedule = gather_schedule([change], NODES, hierarchical=hierarchical)
    return max(traffic(schedule, [change], NODES).node_out_bytes)


def _row(
    what: str, case: str, name: str, taken: Sequence[Mapping[str, Passes]], *, against: str
) -> dict[str, JsonValue]:
    mine_s, flat_s = (_slowest_s(taken, each) for each in (name, against))
    quartiles = statistics.quantiles(mine_s, n=4)
    sent = max(statistics.median(rank[name].sent_bytes) for rank in taken)
    ratios = [mine / flat for mine, flat in zip(mine_s, flat_s, strict=True)]
    return {
        "what": what,
        "case": case,
        "by": name,
        "ms": round(1e3 * statistics.median(mine_s), 2),
        "quartiles_ms": f"{1e3 * quartiles[0]:.1f}-{1e3 * quartiles[2]:.1f}",
        "across_mib": round(sent / MIB, 3),
        "over_flat": round(statistics.median(ratios), 3),
        "status": "",
    }


def _slowest_s(taken: Sequence[Mapping[str, Passes]], name: str) -> list[float]:
    """Each pass as long as the slowest rank's."""
    return [max(times) for times in zip(*(rank[name].seconds for rank in taken), strict=True)]


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    """How much more of bytes and of time the flat and the blind ones take."""
    by = {(row["what"], row["case"], row["by"]): row for row in rows}

    def bytes_ratio(what: str, case: str, more: str, less: str) -> float:
        return _number(by[what, case, more], "across_mib") / _number(
            by[what, case, less], "across_mib"
        )

    flat = (MAIN_CASE, FLAT, TWO_LEVEL)
    summary = {"bytes_across_flat_over_hierarchical": bytes_ratio("gather", *flat)}
    for kind in ("gather", "reduction"):
        row = by[kind, MAIN_CASE, TWO_LEVEL]
        summary[f"{kind}_flat_over_hierarchical"] = 1 / _number(row, "over_flat")
    for ending, (policy, trace) in STEPS.items():
        case = f"{policy}, {trace}"
        row = by["step", case, AWARE]
        summary[f"step_blind_over_aware{ending}"] = 1 / _number(row, "over_flat")
        summary[f"step_bytes_blind_over_aware{ending}"] = bytes_ratio("step", case, BLIND, AWARE)
    hidden = (row["hidden_fraction"] for row in rows if "hidden_fraction" in row)
    summary["hidden_gather_fraction"] = float(str(next(hidden)))
    return {name: round(value, 3) for name, value in summary.items()}


def _number(row: Row, key: str) -> float:
    value = row[key]
    assert isinstance(value, int | float)
    return float(value)

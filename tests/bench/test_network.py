"""Two nodes joined by a slow link: what crosses it, by hand; and that nothing of them is left."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest
from patience import PATIENCE_S
from ranks import FORKSERVER
from toy_workload import TOY

from collectives import lambda_share
from hecate.bench import BenchOptions
from hecate.bench.namespaces import Node, NoNamespaces, two_nodes
from hecate.bench.network import (
    CASES,
    MAIN_CASE,
    STEPS,
    Pace,
    bench_network,
    collective_rows,
    hidden_rows,
    ranks_on,
    step_rows,
    summarise,
)
from hecate.bench.node_ranks import Collectives

PACE = Pace(collective_passes=2, step_passes=2, step_warm_up=1, hidden_passes=4)
CHUNK_BYTES = 1 << 18
# Headers of 66 bytes to a segment of 1,448 at the worst, and as many acknowledgements.
MOST_OVERHEAD = 1.07
WORKLOAD = replace(TOY, batch_sequences=8)
ONCE = Collectives("gather", replace(CASES[MAIN_CASE], chunk_bytes=64), ("p2p",), passes=1)


def held(nodes: Sequence[Node], stack: ExitStack) -> list[TextIO]:
    """The namespaces of ``nodes``; open until ``stack`` ends, so that no other is taken for one."""
    paths = [Path(f"/proc/{node.keeper}/ns/net") for node in nodes]
    return [stack.enter_context(path.open()) for path in paths]


def processes_in(namespaces: Sequence[TextIO]) -> list[str]:
    """The processes of this machine that are in one of ``namespaces``."""
    ours = [os.fstat(namespace.fileno()) for namespace in namespaces]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            own = (process / "ns" / "net").stat()
        except OSError:  # gone meanwhile
            continue
        if any(os.path.samestat(own, namespace) for namespace in ours):
            found.append(process.name)
    return found


@pytest.mark.root
@pytest.mark.parametrize("kind", ["gather", "reduction"])
def test_the_counters_show_lambda_s_and_half_of_it_with_a_copy_to_each_node(kind):
    # of 8 chunks, 2 to a rank, the first of each rank goes to all: lambda = 4/8
    change = replace(CASES[MAIN_CASE], chunk_bytes=CHUNK_BYTES)
    all_bytes = 8 * CHUNK_BYTES
    assert lambda_share(change) == 0.5
    with two_nodes(rate_mbit=2000) as nodes, ranks_on(nodes) as crew:
        task = Collectives(kind, change, ("all_to_all", "hierarchical", "p2p"), passes=3)
        taken = crew.do(task, timeout_s=PATIENCE_S)
    # flat: the 2 chunks of a node that travel, to both ranks of the other: 4 chunks, lambda * S
    by_hand = {"p2p": all_bytes / 2, "all_to_all": all_bytes / 2, "hierarchical": all_bytes / 4}
    for name, expected in by_hand.items():
        for rank in taken:
            assert len(rank[name].sent_bytes) == 3
            for sent in rank[name].sent_bytes:
                assert expected < sent < MOST_OVERHEAD * expected, name


@pytest.mark.root
def test_every_figure_is_there_and_nothing_of_the_nodes_is_left():
    with ExitStack() as stack:
        with two_nodes(rate_mbit=2000) as nodes, ranks_on(nodes) as crew:
            namespaces = held(nodes, stack)
            rows = [*collective_rows(crew, PACE), *step_rows(crew, PACE, WORKLOAD)]
            assert {str(node.keeper) for node in nodes} < set(processes_in(namespaces))
        assert not processes_in(namespaces)
    with two_nodes(rate_mbit=2000) as nodes, ranks_on(nodes, ranks_per_node=1) as crew:
        rows += hidden_rows(crew, PACE, WORKLOAD)
    for row in rows:
        if row.get("schedule_mib"):
            assert 1 < row["across_mib"] / row["schedule_mib"] < MOST_OVERHEAD, row
    summary = summarise(rows)
    for name in ("bytes_across", "gather", "reduction"):
        assert summary[f"{name}_flat_over_hierarchical"] > 0
    assert summary["bytes_across_flat_over_hierarchical"] == pytest.approx(2, rel=0.02)
    for ending in STEPS:
        assert summary[f"step_blind_over_aware{ending}"] > 0
    assert math.isfinite(summary["hidden_gather_fraction"])
    # all experts everywhere: once to each node and not twice
    assert summary["step_bytes_blind_over_aware_fsdp"] > 1.2


@pytest.mark.root
def test_an_error_inside_leaves_no_namespace_and_no_rank():
    with ExitStack() as stack:
        with (
            pytest.raises(ZeroDivisionError),
            two_nodes(rate_mbit=2000) as nodes,
            ranks_on(nodes) as crew,
        ):
            namespaces = held(nodes, stack)
            crew.do(ONCE, timeout_s=PATIENCE_S)  # once they answer, all ranks are on their nodes
            assert len(processes_in(namespaces)) > len(nodes)
            1 / 0  # noqa: B018
        assert not processes_in(namespaces)


@pytest.mark.root
def test_the_link_carries_no_more_than_it_is_to():
    with two_nodes(rate_mbit=123) as nodes:
        for node in nodes:
            inside = ["nsenter", f"--net=/proc/{node.keeper}/ns/net"]
            shown = subprocess.run(
                [*inside, "tc", "qdisc", "show", "dev", "link0"], capture_output=True, text=True
            )
            assert "tbf" in shown.stdout and "rate 123Mbit" in shown.stdout


def as_nobody(end) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)
    end.send(bench_network(BenchOptions(quick=True)))


def test_without_root_one_row_says_so():
    ours, theirs = FORKSERVER.Pipe()
    process = FORKSERVER.Process(target=as_nobody, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(60)
    report = ours.recv()
    process.join()
    (row,) = report.rows
    assert row["status"].startswith("not run: network namespaces need root")
    assert not report.summary


@pytest.mark.root
def test_a_link_that_cannot_be_made_names_the_command():
    with pytest.raises(NoNamespaces) as raised, two_nodes(rate_mbit=0):
        pytest.fail("a link without a rate")
    assert "tc qdisc add dev link0 root tbf rate 0mbit" in str(raised.value)

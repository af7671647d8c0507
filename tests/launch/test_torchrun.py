"""``launch/torchrun.sh`` on two nodes: namespaces with host names and addresses of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import finish, json_lines, metrics, set_, write_config, write_corpus

from hecate.bench.namespaces import INTERFACE, Node, two_nodes

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "torchrun.sh"


def on_node(node: Node, rank: int, first: Node, *words: str, cwd: Path) -> subprocess.Popen:
    """The script as a user of that node calls it; the first node's port is the default one."""
    name = ("sh", "-c", f'hostname node{rank}; exec "$@"', "sh")
    return subprocess.Popen(
        [
            *("nsenter", f"--net=/proc/{node.keeper}/ns/net", "unshare", "--uts", *name),
            *(str(SCRIPT), *words),
        ],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "NNODES": "2",
            "NODE_RANK": str(rank),
            "MASTER_ADDR": first.address,
            "LOCAL_ADDR": node.address,
            "NPROC_PER_NODE": "1",
            "GLOO_SOCKET_IFNAME": INTERFACE,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.root
def test_two_nodes_train_one_run_and_know_that_they_are_two(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    write_config(tmp_path / "toy.yaml")
    with two_nodes(1000) as nodes:
        jobs = [
            on_node(node, rank, nodes[0], "toy.yaml", *set_(train__steps=3), cwd=tmp_path)
            for rank, node in enumerate(nodes)
        ]
        try:
            done = [finish(job) for job in jobs]
        finally:
            for job in jobs:
                job.kill()
                job.communicate()
    assert [job.returncode for job in done] == [0, 0], done[0].stderr + done[1].stderr
    run = tmp_path / "runs" / "toy"
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    (start,) = json_lines(run / "starts.jsonl")
    assert (start["ranks"], start["nodes"]) == (2, 2)


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        ((), {}, "usage:"),
        (("toy.yaml",), {"NNODES": "2"}, "MASTER_ADDR is not set"),
    ],
)
def test_what_is_missing_is_named(
    words: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    done = subprocess.run(
        [SCRIPT, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr

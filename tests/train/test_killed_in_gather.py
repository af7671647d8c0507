"""A rank that is killed while experts are copied: the one that is left names the layer and ends."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from jobs import TOY, Forked, finish, fork, set_, wait_for, write_config, write_corpus

from hecate.bench.namespaces import INTERFACE, two_nodes

# At 1 MB/s a gather of the first layer takes each rank 6 s: of 4 experts of 3 MiB it lacks two.
RATE_MBIT = 8
SIZES = {**TOY["model"]["sizes"], "moe_intermediate_size": 8192}
CONFIG = {
    **TOY,
    "model": {**TOY["model"], "sizes": SIZES},
    # with given costs nothing is measured, so that the first large messages are those of the gather
    "experts": {"policy": "fsdp", "transport": "p2p", "costs": {"slot_s": 1e-6, "copy_s": 1e-6}},
}
# Late enough that both ranks have counted tokens and wait for the gather, on a busy machine too.
IN_THE_GATHER_BYTES = 2 << 20
# Of a rank that dies in the middle of a message gloo tells only when the group's timeout is over.
TIMEOUT_S, ENDS_WITHIN_S = 12, 24


def sent_bytes(process: Forked) -> int:
    """What the node of a process has sent to the other."""
    for line in Path(f"/proc/{process.pid}/net/dev").read_text().splitlines():
        if line.strip().startswith(f"{INTERFACE}:"):
            return int(line.split(":")[1].split()[8])
    return 0


@pytest.mark.root
@pytest.mark.parametrize("victim", [0, 1])
def test_the_rank_that_is_left_names_the_layer_and_the_rank(tmp_path: Path, victim: int) -> None:
    write_corpus(tmp_path / "corpus")
    write_config(tmp_path / "toy.yaml", CONFIG)
    place = {"WORLD_SIZE": "2", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": INTERFACE}
    with two_nodes(RATE_MBIT) as nodes:
        ranks = [
            fork(
                "train",
                "toy.yaml",
                *set_(checkpoint__every=100, mesh__timeout_s=TIMEOUT_S),
                cwd=tmp_path,
                node=node,
                RANK=str(rank),
                MASTER_ADDR=nodes[0].address,
                **place,
            )
            for rank, node in enumerate(nodes)
        ]
        try:
            wait_for(lambda: min(map(sent_bytes, ranks)) >= IN_THE_GATHER_BYTES, "a gather", *ranks)
            ranks[victim].kill()
            killed_s = time.monotonic()
            done = finish(ranks[1 - victim])
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()
    assert time.monotonic() - killed_s < ENDS_WITHIN_S
    assert ranks[victim].returncode == -signal.SIGKILL
    assert done.returncode == 1
    left = 1 - victim
    failed = f"rank {left}: the gather of model.layers.0.mlp.experts failed"
    assert failed in done.stderr, done.stderr
    assert (
        f"all-gather of layer model.layers.0.mlp.experts with rank {victim} was not over"
        in done.stderr
    )
    assert "another rank died" in done.stderr and "--resume auto" in done.stderr
    assert "Traceback" not in done.stderr and "terminate called" not in done.stderr

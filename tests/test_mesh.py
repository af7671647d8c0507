"""Forming and adopting process groups, and what is said when they cannot be formed."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from patience import PATIENCE_S
from ranks import run_ranks

from collectives import CollectiveTimeout, PlanDisagreement
from hecate.errors import CollectiveFailure, ConfigError, HecateError, MeshError
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, naming, open_mesh, sum_over

CPU = MeshConfig(device="cpu", timeout_s=20)


def test_without_a_launcher_one_process_is_the_whole_job():
    rendezvous = Rendezvous.from_environment({"PATH": "/bin", "LOCAL_RANK": "3"})
    assert (rendezvous.rank, rendezvous.world_size, rendezvous.local_rank) == (0, 1, 0)
    assert isinstance(rendezvous.store, dist.HashStore)


def test_a_launcher_names_the_place_and_leaves_the_store_to_its_address():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert Rendezvous.from_environment(environment) == Rendezvous(5, 8, 1, None)


def test_a_launcher_of_single_process_nodes_may_leave_out_the_local_rank():
    environment = {"RANK": "1", "WORLD_SIZE": "2"}
    assert Rendezvous.from_environment(environment) == Rendezvous(1, 2, 0, None)


@pytest.mark.parametrize(
    ("environment", "got"),
    [
        pytest.param({"RANK": "1"}, "WORLD_SIZE", id="no world size"),
        pytest.param({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK", id="no rank"),
        pytest.param({"RANK": "one", "WORLD_SIZE": "2"}, "'one'", id="not a number"),
        pytest.param({"RANK": "", "WORLD_SIZE": "2"}, "''", id="empty"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "'x'", id="local rank"),
    ],
)
def test_an_incomplete_launcher_is_an_error_that_says_what_is_missing(environment, got):
    with pytest.raises(MeshError) as caught:
        Rendezvous.from_environment(environment)
    assert got in caught.value.got
    assert "torchrun" in caught.value.fix
    assert caught.value.exit_code == 2


def test_one_process_forms_a_mesh_of_its_own_and_closes_it():
    assert not dist.is_initialized()
    for _ in range(2):  # a second job in the same process starts afresh
        with open_mesh(CPU, Rendezvous.from_environment({})) as ctx:
            assert (ctx.rank, ctx.world_size, ctx.local_rank) == (0, 1, 0)
            assert ctx.device == torch.device("cpu")
            assert ctx.mesh.mesh_dim_names == ("data",)
            assert ctx.mesh.size() == 1
            groups = (ctx.groups.tokens, ctx.groups.control, ctx.groups.checkpoint)
            assert len({id(group) for group in groups}) == 3
            assert [group.group_desc for group in groups] == ["tokens", "control", "checkpoint"]
            assert sum_over(ctx.groups.control, torch.tensor([2, 3])).tolist() == [2, 3]
        assert not dist.is_initialized()


def test_a_mesh_closes_when_its_body_raises():
    with pytest.raises(KeyError), open_mesh(CPU, Rendezvous.from_environment({})):
        raise KeyError("inside")
    assert not dist.is_initialized()


def test_a_group_that_is_there_is_adopted_and_left_open():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        formed = dist.group.WORLD
        # What the rendezvous says of other peers does not count: the job is formed already.
        with open_mesh(CPU, Rendezvous(1, 2, 0, None)) as ctx:
            assert (ctx.rank, ctx.world_size) == (0, 1)
            assert dist.group.WORLD is formed
        assert dist.is_initialized()
        assert dist.group.WORLD is formed
    finally:
        dist.destroy_process_group()


def place_and_sums(ctx: ParallelContext) -> dict[str, object]:
    sums = torch.tensor([1, 10 * ctx.rank])
    returned = sum_over(ctx.groups.control, sums)
    return {
        "place": (ctx.rank, ctx.world_size, ctx.mesh.size(), ctx.mesh.get_rank()),
        "sums": returned.tolist(),
        "in_place": returned is sums,
        "backends": [
            dist.get_backend(group)
            for group in (ctx.groups.tokens, ctx.groups.control, ctx.groups.checkpoint)
        ],
    }


def test_three_ranks_meet_and_sum():
    for rank, seen in enumerate(run_ranks(place_and_sums, 3)):
        assert seen["place"] == (rank, 3, 3, rank)
        assert seen["sums"] == [3, 30]
        assert seen["in_place"]
        assert seen["backends"] == ["gloo"] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_asking_for_cuda_without_a_gpu_is_an_error_before_anyone_waits():
    rendezvous = Rendezvous(3, 4, 1, None)
    with pytest.raises(MeshError) as caught, open_mesh(MeshConfig(device="cuda"), rendezvous):
        pass
    assert "rank 3" in caught.value.what
    assert caught.value.got == "0 GPUs for local rank 1"
    assert not dist.is_initialized()


def open_as(port: int, rank: int, timeout_s: float) -> tuple[str, str, bool]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with open_mesh(
            MeshConfig(device="cpu", timeout_s=timeout_s), Rendezvous(rank, 2, rank, None)
        ):
            return "met", "", True
    except HecateError as error:
        return type(error).__name__, str(error), dist.is_initialized()


def in_another_process(*args: object) -> tuple[str, str, bool]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(open_as, *args).result(timeout=PATIENCE_S)


@contextmanager
def busy_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_port_in_use_is_an_error_that_says_how_to_mend_it():
    with busy_port() as port:
        kind, text, open_still = in_another_process(port, 0, 20.0)
    assert kind == "MeshError"
    assert "rank 0 of 2 could not join the job" in text
    assert "address already in use" in text.lower()
    assert str(port) in text
    assert "free the port" in text
    assert not open_still


def test_peers_that_never_come_are_waited_for_no_longer_than_asked():
    with busy_port() as port:
        pass  # free now
    kind, text, open_still = in_another_process(port, 0, 1.0)
    assert kind == "MeshError"
    assert "within 1 s" in text
    assert not open_still


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:1",
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1000ms",
        "Connection reset by peer",
        "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited",
    ],
)
def test_naming_turns_a_transport_failure_into_one_that_names_rank_and_collective(message):
    first_line = message + "\nException raised from run at frame #0"
    with pytest.raises(CollectiveFailure) as caught, naming("the token exchange of layer 3", 2):
        raise RuntimeError(first_line)
    assert "rank 2: the token exchange of layer 3 failed" in caught.value.what
    assert caught.value.got == message
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("Connection reset by peer"),
        ConfigError("socket timeout out of range"),
    ],
)
def test_naming_lets_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, naming("a collective", 0):
        raise error
    assert caught.value is error


def test_naming_says_what_lasted_or_differed_in_a_sparse_collective():
    with pytest.raises(CollectiveFailure) as caught, naming("the gather of blocks.7", 2):
        raise CollectiveTimeout("rank 2: nobody answered")
    assert caught.value.what.startswith("rank 2: the gather of blocks.7 failed")
    assert caught.value.got == "rank 2: nobody answered"
    with pytest.raises(CollectiveFailure) as caught, naming("the gather of blocks.7", 2):
        raise PlanDisagreement("another plan than most: layer blocks.7 on rank 1")
    assert "was not launched, since ranks planned differently" in caught.value.what
    assert caught.value.got == "another plan than most: layer blocks.7 on rank 1"


def test_naming_keeps_the_innermost_name():
    with (
        pytest.raises(CollectiveFailure, match="the count exchange"),
        naming("a collective of the forward pass", 1),
        naming("the count exchange", 1),
    ):
        raise RuntimeError("Socket Timeout")


def test_naming_does_nothing_where_nothing_fails():
    with naming("a collective", 0):
        total = 1 + 1
    assert total == 2


def lose_a_peer(ctx: ParallelContext) -> str:
    if ctx.rank == 1:
        return "left"
    try:
        with naming("a sum", ctx.rank):
            sum_over(ctx.groups.control, torch.zeros(1))
    except CollectiveFailure as failure:
        return failure.what
    return "summed"


def test_a_real_peer_that_leaves_is_a_named_failure():
    stayed, left = run_ranks(lose_a_peer, 2)
    assert left == "left"
    assert stayed.startswith("rank 0: a sum failed")

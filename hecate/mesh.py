"""The process groups of a job: formed here, named here, closed here, and nowhere else.

torchrun, Ray Train and Slurm all end in ``open_mesh``. It adopts a default group that is already
there and otherwise makes one; everything below it takes a group as an argument.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from collectives.errors import CollectiveError, PlanDisagreement
from hecate.config import Config
from hecate.errors import CollectiveFailure, MeshError


class MeshConfig(Config):
    """Where a rank computes and how long it waits for the others.

    ``timeout_s``: of each collective. torchrun ends the ranks that are left when one dies; without
    it, they may hear of it only then, since gloo does not tell of a death in the middle of a
    message. ``ranks_per_node``: how many consecutive ranks share a node; 0 asks every rank for the
    name of its node: the launcher's, or else its host's.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout_s: float = 300.0
    ranks_per_node: int = Field(default=0, ge=0)


_DEFAULT = MeshConfig()


@dataclass(frozen=True)
class Rendezvous:
    """How this process finds its peers: its place among them, and the store that they share.

    ``store`` is ``None`` under a launcher that leaves the address in MASTER_ADDR and MASTER_PORT.
    ``node``: the launcher's name of the node; "" leaves that to the name of the host.
    ``prefix``: what keeps keys of this start apart from older ones in a store that outlives it.
    """

    rank: int
    world_size: int
    local_rank: int
    store: Store | None
    node: str = ""
    prefix: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Rendezvous:
        """What torchrun or Slurm's launcher says; one process alone where nobody does."""
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls(0, 1, 0, HashStore())
        try:
            rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local_rank = int(environment.get("LOCAL_RANK", "0"))
        except (KeyError, ValueError) as error:
            raise MeshError(
                "the launcher's description of the job is incomplete",
                got=f"{error} while reading RANK, WORLD_SIZE and LOCAL_RANK",
                expected="all three as integers, as torchrun sets them",
                fix="launch with torchrun, or unset all three to run one process",
            ) from error
        return cls(rank, world_size, local_rank, None, prefix=_restart_of(environment))


def _restart_of(environment: Mapping[str, str]) -> str:
    """Which start of these ranks it is, where torchrun's agent on a single node keeps their store.

    It keeps one for all of them, and a rank that is there first would take the addresses that the
    ranks before it left. Agents of several nodes do not count restarts alike; what starts those
    has to set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, as ``launch/`` does, for a new store each time.
    """
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not agent or environment.get("GROUP_WORLD_SIZE") != "1":
        return ""
    return f"start {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@dataclass(frozen=True)
class Groups:
    """One process group for each kind of traffic, so that none queues behind another.

    ``tokens`` carries the token exchange, ``gather`` and ``reduce`` the sparse collectives of the
    experts, ``control`` small host-side agreements (counts, norms, metrics) and ``checkpoint``
    belongs to the thread that writes checkpoints; the last two are gloo groups of CPU tensors on
    every machine.
    """

    tokens: dist.ProcessGroup
    gather: dist.ProcessGroup
    reduce: dist.ProcessGroup
    control: dist.ProcessGroup
    checkpoint: dist.ProcessGroup


@dataclass(frozen=True)
class ParallelContext:
    """Where this rank stands: its device, the one-dimensional mesh of all ranks, the groups.

    ``node_of_rank``: which ranks share a node, nodes numbered by their first rank.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    mesh: DeviceMesh
    groups: Groups
    node_of_rank: tuple[int, ...]


# Note [Leaving]
# --------------
# A thread of gloo lets go of a collective's tensors after the waiting rank has gone on, and needs
# the interpreter for it. If that is closing by then, the thread ends the process: "terminate called
# without an active exception" (pytorch issue 190489). Groups live as long as somebody keeps the
# context, so that closing them does not wait for it. A sleep hands the interpreter over, and the
# thread, which has been waiting for nothing else, is done at once.
SETTLE_S = 0.05


@contextmanager
def open_mesh(
    config: MeshConfig = _DEFAULT, rendezvous: Rendezvous | None = None
) -> Iterator[ParallelContext]:
    """Form the groups of this job, and close them at the end if it was us who formed them.

    ``rendezvous``: how the ranks meet; without one, as the launcher's environment says. Raises
    ``MeshError`` when the peers do not meet: a port in use, a host that is not there, a CUDA
    device that is missing.
    """
    rendezvous = rendezvous or Rendezvous.from_environment(os.environ)
    device = _device(config, rendezvous)
    timeout = datetime.timedelta(seconds=config.timeout_s)
    adopted = dist.is_initialized()
    if not adopted:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _joining(rendezvous, config):
            dist.init_process_group(
                backend,
                store=_store(rendezvous, timeout),
                rank=rendezvous.rank,
                world_size=rendezvous.world_size,
                timeout=timeout,
            )
    try:
        world_size = dist.get_world_size()
        with _joining(rendezvous, config):
            groups = Groups(
                tokens=dist.new_group(timeout=timeout, group_desc="tokens"),
                gather=dist.new_group(timeout=timeout, group_desc="gather"),
                reduce=dist.new_group(timeout=timeout, group_desc="reduce"),
                control=dist.new_group(backend="gloo", timeout=timeout, group_desc="control"),
                checkpoint=dist.new_group(backend="gloo", timeout=timeout, group_desc="checkpoint"),
            )
            if device.type == "cuda" and world_size > 1:
                _connect((groups.tokens, groups.gather, groups.reduce), device)
            ctx = ParallelContext(
                rank=dist.get_rank(),
                world_size=world_size,
                local_rank=rendezvous.local_rank,
                device=device,
                mesh=init_device_mesh(device.type, (world_size,), mesh_dim_names=("data",)),
                groups=groups,
                node_of_rank=_nodes(config, rendezvous, groups.control, world_size),
            )
        yield ctx
    finally:
        if not adopted and dist.is_initialized():
            dist.destroy_process_group()
            time.sleep(SETTLE_S)  # see Note [Leaving]


@contextmanager
def _joining(rendezvous: Rendezvous, config: MeshConfig) -> Iterator[None]:
    """Say what it means that a group could not be formed."""
    try:
        yield
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise MeshError(
            f"rank {rendezvous.rank} of {rendezvous.world_size} could not join the job",
            got=str(error).splitlines()[0],
            expected="every rank to reach MASTER_ADDR:MASTER_PORT within "
            f"{config.timeout_s:.0f} s, and to live until all have",
            fix="free the port or choose another (torchrun --standalone chooses a free one)",
        ) from error


def _store(rendezvous: Rendezvous, timeout: datetime.timedelta) -> Store | None:
    if not rendezvous.prefix or rendezvous.store is not None:
        return rendezvous.store
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timeout)
    return PrefixStore(rendezvous.prefix, store)


def _connect(groups: Sequence[dist.ProcessGroup], device: torch.device) -> None:
    """Form the communicators of groups of NCCL, which takes all their ranks.

    NCCL forms one in a group's first operation. Where that was a message between two ranks, they
    would wait for the others, which have none to send.
    """
    for group in groups:
        dist.all_reduce(torch.zeros(1, device=device), group=group)


def _nodes(
    config: MeshConfig, rendezvous: Rendezvous, control: dist.ProcessGroup, world_size: int
) -> tuple[int, ...]:
    if config.ranks_per_node:
        return tuple(rank // config.ranks_per_node for rank in range(world_size))
    hosts: list[str] = [""] * world_size
    dist.all_gather_object(hosts, rendezvous.node or socket.gethostname(), group=control)
    numbers = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
    return tuple(numbers[host] for host in hosts)


def _device(config: MeshConfig, rendezvous: Rendezvous) -> torch.device:
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    if rendezvous.local_rank >= torch.cuda.device_count():
        raise MeshError(
            f"rank {rendezvous.rank} has no GPU of its own",
            got=f"{torch.cuda.device_count()} GPUs for local rank {rendezvous.local_rank}",
            expected="one GPU for each process of a node",
            fix="lower --nproc-per-node, or set mesh.device to cpu",
        )
    device = torch.device("cuda", rendezvous.local_rank)
    torch.cuda.set_device(device)
    return device


_TRANSPORT_WORDS = (
    "connection closed",
    "connection reset",
    "connection refused",
    "timed out",
    "timeout",
    "broken pipe",
    "gloo/transport",
    "nccl error",
    "socket",
    "process group has been aborted",
)


def lost_peer(error: BaseException) -> bool:
    """Whether ``error`` is what torch raises where a peer is gone or does not answer."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _TRANSPORT_WORDS)


@contextmanager
def naming(collective: str, rank: int) -> Iterator[None]:
    """Turn a transport failure inside into a ``CollectiveFailure`` that names rank and collective.

    Ranks that planned differently are told so. Other errors pass through as they are.
    """
    try:
        yield
    except PlanDisagreement as error:
        raise CollectiveFailure(
            f"rank {rank}: {collective} was not launched, since ranks planned differently",
            got=str(error),
            fix="report it, with the configuration and the loads of the step before",
        ) from error
    except RuntimeError as error:
        if not isinstance(error, CollectiveError) and not lost_peer(error):
            raise
        text = str(error)
        raise CollectiveFailure(
            f"rank {rank}: {collective} failed, most likely because another rank died or hung",
            got=text.splitlines()[0][:300],
            fix="look for the first error among the other ranks' output; then continue from the "
            "newest checkpoint with --resume auto",
        ) from error


def sum_over(group: dist.ProcessGroup, values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of ``values`` over the ranks of ``group``, in place."""
    dist.all_reduce(values, group=group)
    return values

"""Two nodes on one machine: network namespaces joined by a link of limited bandwidth.

The namespaces have no names. A process in each, which ends when this one does, however it ends, is
all that keeps them; with the last process of a namespace its interfaces and its limits are gone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hecate.errors import HecateError

INTERFACE = "link0"
TOOLS = ("ip", "tc", "unshare", "nsenter")
# What the limit lets pass at once, and how long a packet may wait in its queue.
BURST, QUEUE = "256kb", "200ms"

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class NoNamespaces(HecateError):
    """This machine does not let us make network namespaces."""


@dataclass(frozen=True)
class Node:
    """A network namespace: the process that keeps it, and its address on the link."""

    keeper: int
    address: str


@contextmanager
def two_nodes(rate_mbit: int) -> Iterator[tuple[Node, Node]]:
    """Two nodes whose link carries ``rate_mbit`` Mbit/s in each direction.

    Its latency is that of the machine. Raises ``NoNamespaces`` where a tool or a permission is
    missing.
    """
    if os.geteuid() != 0:
        raise NoNamespaces("network namespaces need root", got=f"user {os.geteuid()}")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise NoNamespaces(
            "network namespaces need tools that are not here",
            got=f"no {', '.join(missing)}",
            fix="install iproute2 and util-linux",
        )
    with ExitStack() as stack:
        first, second = (
            Node(stack.enter_context(_keeper()), address) for address in ("10.0.0.1", "10.0.0.2")
        )
        far = ("peer", "name", INTERFACE, "netns", str(second.keeper))
        _run(first, "ip", "link", "add", INTERFACE, "type", "veth", *far)
        for node in (first, second):
            _run(node, "ip", "address", "add", f"{node.address}/24", "dev", INTERFACE)
            for name in ("lo", INTERFACE):
                _run(node, "ip", "link", "set", name, "up")
            limit = ("rate", f"{rate_mbit}mbit", "burst", BURST, "latency", QUEUE)
            _run(node, "tc", "qdisc", "add", "dev", INTERFACE, "root", "tbf", *limit)
        yield first, second


@contextmanager
def _keeper() -> Iterator[int]:
    """A process in a new namespace that ends with the pipe to it; its id."""
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, who then close it
    )
    with process:
        assert process.stdin and process.stdout and process.stderr
        if not process.stdout.readline():
            reason = process.stderr.read().decode(errors="replace").strip()
            raise NoNamespaces("a network namespace cannot be made here", got=reason)
        try:
            yield process.pid
        finally:
            process.kill()


def _run(node: Node, *command: str) -> None:
    """Run ``command`` in the namespace of ``node``."""
    inside = ["nsenter", f"--net=/proc/{node.keeper}/ns/net", *command]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespaces(
            "two network namespaces cannot be joined here",
            got=f"{' '.join(command)}: {done.stderr.strip()}",
        )


def enter(node: Node) -> None:
    """Move this thread, and those that it starts from now on, to ``node``."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{node.keeper}/ns/net").open() as namespace:
        if libc.setns(namespace.fileno(), _NEW_NETWORK):
            code = ctypes.get_errno()
            raise NoNamespaces("a namespace cannot be entered", got=os.strerror(code))


def sent_bytes() -> int:
    """What this thread's node has sent over the link so far, by the counter of its interface."""
    lines = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()
    (counters,) = (line.split(":")[1] for line in lines if line.strip().startswith(f"{INTERFACE}:"))
    return int(counters.split()[8])

"""Replicas share packed weights, which compute what those of one process do; whatever stands in the
way of that, a replica packs its own."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from holder import beside
from replica import forward_of, logits_of, mapping

from serving.engine.kernels.library import kernels
from serving.engine.panels import _SEALS, PanelMemory, Sharing, _mark
from serving.memory.rendezvous import meeting


def test_two_replicas_have_their_weights_once(tmp_path: Path) -> None:
    sharing = Sharing("toy", tmp_path / "node")
    expected = logits_of(forward_of(None))
    with beside("replica", "serves", sharing.folder) as first:
        filled, logits = first.says()
        assert (filled, logits) == (False, expected)
        second = forward_of(sharing)
        assert second.weights.filled and second.weights.shared
        assert logits_of(second) == expected
        ours = mapping(second.weights.address)
        first.go_on()
        theirs = first.says()
    for said in (ours, theirs):
        assert said["Rss"] * 1024 >= second.weights.num_bytes
        assert abs(said["Pss"] - said["Rss"] / 2) <= 4
        assert said["Anonymous"] == 0
        assert said["Private_Clean"] + said["Private_Dirty"] == 0
    # The one that packed them has been killed.
    assert logits_of(second) == expected
    assert forward_of(sharing).weights.filled


def test_a_replica_that_waited_for_a_killed_one_packs(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    with beside("replica", "packs_half", folder) as first:
        assert first.says() is False
        with beside("replica", "serves", folder) as second:
            first.kill()
            filled, logits = second.says()
    assert not filled
    assert logits == logits_of(forward_of(None))


def test_weights_are_freed_with_the_last_that_has_them(tmp_path: Path) -> None:
    sharing = Sharing("toy", tmp_path / "node")
    memory = PanelMemory(kernels(), 10_000, sharing, torch.float32)
    with memory:
        pass
    assert memory.shared
    again = PanelMemory(kernels(), 10_000, sharing, torch.float32)
    assert again.filled
    del memory, again
    assert not PanelMemory(kernels(), 10_000, sharing, torch.float32).filled


@pytest.mark.parametrize(
    ("digest", "dtype", "num_bytes"),
    [
        ("other", torch.float32, 10_000),
        ("toy", torch.bfloat16, 10_000),
        ("toy", torch.float32, 9_999),
    ],
)
def test_other_weights_are_not_found(
    tmp_path: Path, digest: str, dtype: torch.dtype, num_bytes: int
) -> None:
    with PanelMemory(kernels(), 10_000, Sharing("toy", tmp_path / "node"), torch.float32) as memory:
        pass
    assert memory.shared
    sharing = Sharing(digest, tmp_path / "node")
    assert not PanelMemory(kernels(), num_bytes, sharing, dtype).filled


@pytest.mark.parametrize(
    ("size", "mark", "seals", "filled"),
    [
        (12288, lambda mark: mark, _SEALS, True),
        (12288, lambda mark: mark, 0, False),
        (12288, lambda mark: mark, _SEALS & ~fcntl.F_SEAL_SHRINK, False),
        (12288, lambda mark: mark[:-1] + b"?", _SEALS, False),
        (12288, lambda mark: b"", _SEALS, False),
        (8192, lambda mark: mark, _SEALS, False),
    ],
    ids=["whole", "unsealed", "may shrink", "other mark", "no mark", "cut off"],
)
def test_only_a_whole_file_that_nobody_can_change_is_taken(
    tmp_path: Path, size: int, mark: Callable[[bytes], bytes], seals: int, filled: bool
) -> None:
    """8,000 bytes take two pages, and their mark a third."""
    sharing = Sharing("toy", tmp_path / "node")
    right = _mark(kernels(), 8000, sharing.digest, torch.float32)
    made = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(made, size)
    os.pwrite(made, mark(right), 8192 if size > 8192 else 4096)
    os.ftruncate(made, size)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    with meeting(sharing.folder, hashlib.sha256(right).hexdigest()) as place:
        place.announce(made)
    with PanelMemory(kernels(), 8000, sharing, torch.float32) as memory:
        assert memory.filled is filled
    os.close(made)
    with PanelMemory(kernels(), 8000, sharing, torch.float32) as another:
        assert another.filled  # what was made instead is found


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 8192])
def test_without_room_a_replica_packs_its_own_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    expected = logits_of(forward_of(None))
    with caplog.at_level(logging.WARNING), _files_of_at_most(room):
        forward = forward_of(Sharing("toy", tmp_path / "node"))
    assert not forward.weights.shared
    assert logits_of(forward) == expected
    assert caplog.text.count("packed weights are not shared with other replicas") == 1
    assert not forward_of(Sharing("toy", tmp_path / "node")).weights.filled


def test_a_list_that_cannot_be_written_leaves_what_was_found_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sharing = Sharing("toy", tmp_path / "node")
    first = forward_of(sharing)
    with caplog.at_level(logging.WARNING), _files_of_at_most(0):
        second = forward_of(sharing)
    assert second.weights.filled and not second.weights.shared
    assert logits_of(second) == logits_of(first)
    assert caplog.text.count("packed weights are not shared") == 1


@contextmanager
def _without_large_pages() -> Iterator[None]:
    """As with a kernel that gives none (PR_SET_THP_DISABLE)."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(41, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(41, 0, 0, 0, 0)


@pytest.mark.parametrize("small", [False, True])
def test_small_pages_are_shared_only_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, small: bool
) -> None:
    sharing = Sharing("toy", tmp_path / "node", small_pages=small)
    with _without_large_pages(), caplog.at_level(logging.WARNING):
        with PanelMemory(kernels(), 8 << 20, sharing, torch.float32) as memory:
            pass
    assert memory.shared is small
    assert ("no large pages" in caplog.text) is not small
    assert PanelMemory(kernels(), 8 << 20, sharing, torch.float32).filled is small


def test_large_pages_are_kept_by_all(tmp_path: Path) -> None:
    sharing = Sharing("toy", tmp_path / "node")
    found = []
    for _ in range(2):
        with PanelMemory(kernels(), 8 << 20, sharing, torch.float32) as memory:
            found.append(memory)
        ctypes.string_at(memory.address, 8 << 20)
        assert mapping(memory.address)["ShmemPmdMapped"] == 8192
    assert [memory.filled for memory in found] == [False, True]


def test_weights_of_a_model_that_fails_on_the_way_are_not_found(tmp_path: Path) -> None:
    sharing = Sharing("toy", tmp_path / "node")
    with pytest.raises(KeyError), PanelMemory(kernels(), 100, sharing, torch.float32):
        raise KeyError
    assert not PanelMemory(kernels(), 100, sharing, torch.float32).filled

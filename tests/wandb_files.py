"""What lies in the files that wandb writes offline."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patience import until
from wandb.proto.wandb_internal_pb2 import Record


def records(path: Path) -> list[Record]:
    """The records of a .wandb file, once wandb's own process has written the last of them."""

    def finished() -> list[Record]:
        found = list(_parse(path))
        return found if any(record.HasField("exit") for record in found) else []

    return until(finished, f"the end of {path}")


def _parse(path: Path) -> Iterator[Record]:
    """A .wandb file is a LevelDB log behind seven bytes of header."""
    data, at, partial = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return
        partial += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, last
            yield Record.FromString(partial)
            partial = b""


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged, one mapping for each step."""
    rows = []
    for record in records(path):
        if record.HasField("history"):
            rows.append(
                {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
    return rows

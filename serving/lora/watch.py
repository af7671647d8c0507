"""A folder of adapters, which says what is served: what came, changed and went.

Each folder in it with an adapter's two files is one, under its own name. Beside them a file,
``adapters.json``, holds what requests loaded and unloaded, so that every engine over this folder
does the same, those that start later too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hecate.files import locked, write_text
from hecate.models.lora.peft_format import CONFIG_FILE
from serving.lora.facts import AdapterFacts
from serving.lora.peft_folder import stamp_of

RECORD = "adapters.json"

# What an adapter was when it was last looked at: its folder, and the digest that a request loaded
# or the stamps of its files.
_Seen = tuple[str, str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Found:
    """An adapter that is to be served. ``digest``: which content; empty for whatever is there."""

    folder: str
    digest: str = ""


@dataclass(frozen=True)
class Changes:
    """``load``: what a name means now. ``unload``: names that mean nothing any longer."""

    load: dict[str, Found]
    unload: tuple[str, ...]


class FolderWatch:
    """What could not be loaded is tried again when its files change, not before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, _Seen] = {}

    def changes(self) -> Changes:
        """Since the last call; the first one finds everything new."""
        now: dict[str, _Seen] = {
            path.parent.name: (str(path.parent), "", stamp)
            for path in sorted(self._folder.glob(f"*/{CONFIG_FILE}"))
            if (stamp := stamp_of(path.parent))
        }
        for name, found in self._record().items():
            if found is None:
                now.pop(name, None)
            else:
                now[name] = (found.folder, found.digest, ())
        load = {
            name: Found(seen[0], seen[1])
            for name, seen in now.items()
            if self._seen.get(name) != seen
        }
        unload = tuple(name for name in self._seen if name not in now)
        self._seen = now
        return Changes(load, unload)

    def loaded(self, facts: AdapterFacts) -> None:
        """Record what a request loaded. Raises ``StorageError`` and ``OSError``."""
        with self._recording() as record:
            record[facts.name] = Found(facts.folder, facts.digest)

    def unloaded(self, name: str) -> None:
        """Record what a request unloaded, be it a folder in the folder."""
        with self._recording() as record:
            record.pop(name, None)
            if (self._folder / name / CONFIG_FILE).exists():
                record[name] = None

    @contextmanager
    def _recording(self) -> Iterator[dict[str, Found | None]]:
        """The record to be changed; by one engine at a time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / f".{RECORD}.lock"):
            record = self._record()
            yield record
            plain = {
                name: None if found is None else {"folder": found.folder, "digest": found.digest}
                for name, found in sorted(record.items())
            }
            write_text(self._folder / RECORD, json.dumps(plain, indent=1))

    def _record(self) -> dict[str, Found | None]:
        try:
            plain = json.loads((self._folder / RECORD).read_text(encoding="utf-8"))
            return {
                name: None if each is None else Found(each["folder"], each["digest"])
                for name, each in plain.items()
            }
        except FileNotFoundError:
            return {}

"""A folder of adapters: what came, changed and went since it was last looked through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hecate.models.lora.peft_format import CONFIG_FILE
from serving.lora.peft_folder import stamp_of


@dataclass(frozen=True)
class Changes:
    """``load``: folder by name. ``unload``: names whose folders are gone."""

    load: dict[str, Path]
    unload: tuple[str, ...]


class FolderWatch:
    """Each folder in ``folder`` with an adapter's two files is one, under its own name.

    What could not be loaded is tried again when its files change, not before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[tuple[int, int], ...]] = {}

    def changes(self) -> Changes:
        """Since the last call; the first one finds everything new."""
        found = {
            path.parent.name: stamp
            for path in sorted(self.folder.glob(f"*/{CONFIG_FILE}"))
            if (stamp := stamp_of(path.parent))
        }
        load = {
            name: self.folder / name
            for name, stamp in found.items()
            if self._seen.get(name) != stamp
        }
        unload = tuple(name for name in self._seen if name not in found)
        self._seen = found
        return Changes(load, unload)

"""Where things that can be made again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(cache: str = "") -> Path:
    """The folder that a setting such as ``data.cache`` names; "" is hecate's in the user's own."""
    if cache:
        return Path(cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "")  # where the platform keeps caches
    return (Path(home) if home else Path.home() / ".cache") / "hecate"

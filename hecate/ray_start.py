"""Join a Ray cluster, or start one on this machine, which takes long where others keep it busy."""

from __future__ import annotations

from typing import Any

import ray

_TOO_LATE = "timed out during startup"


def start_ray(**settings: Any) -> Any:
    """``ray.init(**settings)``, tried twice where a node that it starts is late; what it returns.

    Ray waits 30 s for its own processes, and no setting of it says otherwise. Raises what
    ``ray.init`` does, but ``RuntimeError`` where it raises a bare ``Exception``.
    """
    try:
        return _start(settings)
    except RuntimeError as error:
        if _TOO_LATE not in str(error):
            raise
        ray.shutdown()
        return _start(settings)


def _start(settings: dict[str, Any]) -> Any:
    try:
        return ray.init(**settings)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise RuntimeError(str(error)) from error

"""What an instance may still need, as samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.scheduling.applications.live import Live

Samples = NDArray[np.float64]


NOTHING: Samples = np.zeros(0)
NOTHING.flags.writeable = False


@dataclass(frozen=True, eq=False)
class Prospect:
    """Of an instance, as of when it had had ``attained_s``: ``device_s``, sorted, is what it may
    still come to need of the device, one sample each; ``path_s``, sorted, the seconds until it
    ends if it never waits for others, tools and all, calls side by side counted once. Instances
    that have shown the same share these arrays.

    Both are empty where nothing is known of its class, or it has outlived all that is. ``least_s``:
    then, the index of work about which no more is known than who asked for it.
    """

    attained_s: float
    device_s: Samples
    path_s: Samples
    least_s: float = 0.0


class Prospects(Protocol):
    """Whoever knows histories."""

    def prospect(self, live: Live) -> Prospect:
        """Of ``live``, given the units that it has shown; the same object until it shows more,
        which ``live.shown`` counts."""
        ...

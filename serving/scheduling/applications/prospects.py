"""What an instance may still need, as samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.scheduling.applications.live import Live

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Prospect:
    """Of an instance, as of when it had had ``attained_s``: ``device_s``, sorted, is what it may
    still come to need of the device, one sample each; ``path_s``, sorted, the seconds until it
    ends if it never waits for others, tools and all, calls side by side counted once.

    Empty where nothing is known.
    """

    attained_s: float
    device_s: Samples
    path_s: Samples


class Prospects(Protocol):
    """Whoever knows histories."""

    def prospect(self, live: Live) -> Prospect:
        """Of ``live``, given the units that it has shown; the same object until it shows more."""
        ...

"""What holds for every test: where the rank processes import from, and what this machine lacks."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

# The fork server of ranks.py and the commands that tests start are new interpreters: they find the
# tests' own modules and this checkout by way of PYTHONPATH.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# No test reaches for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"

torch.set_num_threads(1)

LACKING = {
    "gpu": "" if torch.cuda.is_available() else "no CUDA device",
    "ray": "" if importlib.util.find_spec("ray") else "Ray is not installed",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, reason in LACKING.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))

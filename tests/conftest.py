"""What holds for every test: where the rank processes import from, and what this machine lacks."""

import importlib.util
import multiprocessing.forkserver
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

HERE = Path(__file__).parent

# The fork server of ranks.py and the commands that tests start are new interpreters: they find the
# tests' own modules and this checkout by way of PYTHONPATH.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# No test reaches for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# A thread of Ray Serve that outlives its cluster must not start another one, in the middle of
# whatever test comes next.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

torch.set_num_threads(1)

# The same examples in every run, and none fails for taking long on a busy machine.
hypothesis.settings.register_profile("hecate", derandomize=True, deadline=None)
hypothesis.settings.load_profile("hecate")


def without_namespaces() -> str:
    """Why no network namespace can be made here, if so."""
    if missing := [tool for tool in ("unshare", "nsenter", "ip", "tc") if not shutil.which(tool)]:
        return f"no {', '.join(missing)}"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"network namespaces need root: {done.stderr.strip()}" if done.returncode else ""


LACKING = {
    "root": without_namespaces(),
    "gpu": "" if torch.cuda.is_available() else "no CUDA device",
    "chromium": "" if shutil.which("chromium") else "no chromium (Debian: apt install chromium)",
    "ray": "" if importlib.util.find_spec("ray") else "Ray is not installed",
}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers a core: tests of ranks spend half their time waiting for processes to start."""
    return 2 * len(os.sched_getaffinity(0))


RAY = (
    "train/workers/test_ray.py",
    "test_ray_start.py",
    "serving/app/test_app.py",
    "serving/app/test_live.py",
    "serving/app/test_placed.py",
    "serving/app/test_losses.py",
    "serving/app/test_deployed.py",
    "serving/app/test_acceptance.py",
)
"""Files that start a Ray cluster."""


class OneRay(LoadFileScheduling):
    """``--dist loadfile``, with all files that start Ray on one worker.

    A cluster is a dozen processes with deadlines of their own: on a small machine two starve each
    other.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if file.endswith(RAY) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return OneRay(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server that ranks fork from, before a benchmark starts one with less in it."""
    if "ranks" in sys.modules and not session.config.option.collectonly:
        multiprocessing.forkserver.ensure_running()


LONG = ("test_resume.py", "test_parity.py")
"""Files of minutes, though none of their tests is slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow and long files come first, so that with several workers none is left waiting for one."""
    items.sort(
        key=lambda item: (item.get_closest_marker("slow") is None, item.path.name not in LONG)
    )
    for item in items:
        for marker, reason in LACKING.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))

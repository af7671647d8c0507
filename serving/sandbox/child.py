"""The inside of a sandbox: an interpreter that is ready, and waits for its program.

Alone in its file, since its source is handed to an interpreter that need not have this package. It
says ``R`` on its standard output when it is ready, and reads the program until its input ends. It
ends with its parent, whatever becomes of that.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from typing import Any

READY = b"R"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    given = json.loads(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in given["preload"]:
        importlib.import_module(name)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    read = sys.stdin.buffer.read()
    if read:
        _run(given, json.loads(read))


def _run(given: dict[str, Any], asked: dict[str, str]) -> None:
    os.chdir(asked["folder"])
    with tempfile.TemporaryFile() as stdin:
        stdin.write(asked["stdin"].encode())
        stdin.seek(0)
        os.dup2(stdin.fileno(), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    for name, most in given["limits"].items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    sys.argv = ["program.py"]
    try:
        exec(compile(asked["code"], "program.py", "exec"), {"__name__": "__main__"})
    except SystemExit:
        raise
    except BaseException as error:
        sys.stdout.flush()
        inner = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, inner)
        sys.exit(1)


if __name__ == "__main__":
    main()

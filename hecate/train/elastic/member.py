"""One rank of a supervised job: it joins, trains, leaves when a peer is lost, and joins again.

Its process is forked from the supervisor's, which has imported everything; what it goes through
once (the fork, the threads, malloc's settings) a new generation does not go through again.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch._C._distributed_c10d import FileStore

from hecate.checkpoint.store import join_saves
from hecate.errors import CollectiveFailure, HecateError, MeshError
from hecate.mesh import Rendezvous, open_mesh
from hecate.train.config import RunConfig
from hecate.train.elastic.messages import (
    Answer,
    Began,
    Done,
    End,
    Failed,
    Join,
    Joined,
    Left,
    Measured,
)
from hecate.train.host_memory import keep_freed_memory
from hecate.train.run import Launch, train_on
from hecate.train.stopping import StopRequest

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class Member:
    """What a rank needs to know that all generations share; ``slot`` is its place on the machine.

    ``threads``: how many it computes with on CPU.
    """

    slot: int
    threads: int
    config: RunConfig
    origins: Mapping[str, str]

    def run(self, supervisor: Connection) -> None:
        """The main function of the member's process."""
        _end_with_the_supervisor()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; see supervisor
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        stop = StopRequest()
        with stop.listening():
            while not isinstance(join := supervisor.recv(), End):
                answer = self._take_part(join, supervisor, stop)
                gc.collect()  # what of the generation before holds memory and groups
                if isinstance(answer, Left):
                    join_saves()
                supervisor.send(answer)
                if isinstance(answer, Failed):
                    sys.stdout.flush()
                    os._exit(answer.exit_code)  # whatever its threads wait for

    def _take_part(self, join: Join, supervisor: Connection, stop: StopRequest) -> Answer:
        generation = join.generation
        place = Rendezvous(
            join.rank, join.world_size, self.slot, FileStore(str(join.store), join.world_size)
        )

        def measured(peak_flops: float) -> None:
            supervisor.send(Measured(generation, peak_flops))

        def begins(step: int) -> None:
            supervisor.send(Began(generation, step))

        try:
            with open_mesh(self.config.mesh, place) as ctx:
                supervisor.send(Joined(generation))
                launch = Launch(
                    self.origins, join.resume, join.cause, join.peak_flops, measured, begins
                )
                result = train_on(ctx, self.config, launch, stop)
        except (CollectiveFailure, MeshError) as error:
            return Left(generation, str(error))
        except HecateError as error:
            return Failed(generation, str(error), error.exit_code)
        except Exception:
            return Failed(generation, traceback.format_exc(), 1)
        return Done(generation, result)


def _end_with_the_supervisor() -> None:
    """Let the kernel end this process when its parent is gone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

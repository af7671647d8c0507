"""One interpreter from outside, for one program."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from serving.sandbox.child import READY
from serving.sandbox.config import SandboxConfig
from serving.sandbox.protocol import Outcome, Program, Started, Starter

_CHUNK = 65536
_LOOK_S = 0.005
_LAST_WORDS_S = 1.0  # for output that is still on its way when all is over


def arguments(config: SandboxConfig) -> Sequence[str]:
    """What ``child`` is started with."""
    mib = 1 << 20
    limits = {
        "RLIMIT_CPU": config.cpu_s,
        "RLIMIT_AS": config.memory_mib * mib,
        "RLIMIT_FSIZE": config.file_mib * mib,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 256,
    }
    return (json.dumps({"preload": config.preload, "limits": limits}),)


async def open_session(starter: Starter, config: SandboxConfig) -> Session:
    """An interpreter that is ready. Raises ``OSError`` where it does not get so."""
    started = await starter.start(arguments(config))
    output, errors = started.process.stdout, started.process.stderr
    assert output is not None and errors is not None
    try:
        said = await asyncio.wait_for(output.read(1), config.start_s)
        if said != READY:
            found = (await asyncio.wait_for(errors.read(_CHUNK), config.start_s)).decode(
                errors="replace"
            )
            raise OSError(f"a sandbox did not start: {found.strip().splitlines()[-1:] or said!r}")
    except TimeoutError:
        await started.kill()
        raise OSError(f"a sandbox was not ready after {config.start_s:g} s") from None
    except BaseException:
        await started.kill()
        raise
    return Session(started, config)


@dataclass
class _Kept:
    """The beginning of a stream."""

    data: bytes = b""
    cut: bool = False

    async def read(self, stream: asyncio.StreamReader, most: int) -> None:
        """Until it ends; what is too much is read and forgotten, so that its writer goes on."""
        while chunk := await stream.read(_CHUNK):
            room = most - len(self.data)
            self.data += chunk[:room]
            self.cut |= len(chunk) > room

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


class Session:
    """Ready until ``run`` is called, once, or ``close``."""

    def __init__(self, started: Started, config: SandboxConfig) -> None:
        self._started = started
        self._config = config

    @property
    def alive(self) -> bool:
        return self._started.process.returncode is None

    async def run(self, program: Program) -> Outcome:
        """Until it ends or its time is over; nothing of it goes on after that."""
        process = self._started.process
        assert process.stdin is not None and process.stdout is not None
        assert process.stderr is not None
        begun_s = time.monotonic()
        most = self._config.output_kib << 10
        kept = _Kept(), _Kept()
        asked = {"code": program.code, "stdin": program.stdin, "folder": self._started.folder}
        timeout_s = min(program.timeout_s or self._config.timeout_s, self._config.timeout_s)
        timed_out = False
        reading = asyncio.gather(
            kept[0].read(process.stdout, most), kept[1].read(process.stderr, most)
        )
        try:
            async with asyncio.timeout(timeout_s):
                process.stdin.write(json.dumps(asked).encode())
                process.stdin.close()
                while process.returncode is None:  # wait() waits for all who hold its pipes
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            timed_out = True
        finally:
            seconds = time.monotonic() - begun_s
            await self.close()
            await asyncio.wait([reading], timeout=_LAST_WORDS_S)
            reading.cancel()
        assert process.returncode is not None
        cut = kept[0].cut or kept[1].cut
        return Outcome(
            process.returncode,
            kept[0].text,
            kept[1].text,
            seconds,
            timed_out=timed_out,
            cut=cut,
        )

    async def close(self) -> None:
        """It is gone."""
        await self._started.kill()

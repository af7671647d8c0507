"""Real interpreters: programs run, are bounded, and leave nothing behind."""

import asyncio
import os
import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from patience import PATIENCE_S

from serving.errors import Overloaded
from serving.sandbox import Outcome, Program, SandboxConfig, SandboxPool
from serving.sandbox.docker import DockerStarter, docker_answers
from serving.sandbox.process import ProcessStarter


def run_in_pool(config: SandboxConfig, work: Callable[[SandboxPool], Awaitable[None]]) -> None:
    async def whole() -> None:
        pool = SandboxPool(config, ProcessStarter(config), time.monotonic)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await work(pool)
        finally:
            await pool.close()

    asyncio.run(whole())


def outcome_of(code: str, *, stdin: str = "", timeout_s: float = 0.0, **bounds: int) -> Outcome:
    found: list[Outcome] = []

    async def work(pool: SandboxPool) -> None:
        found.append(await pool.run(Program(code, stdin, timeout_s)))

    run_in_pool(SandboxConfig(most=1, **bounds), work)
    return found[0]


async def become(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_program_reads_writes_and_ends() -> None:
    outcome = outcome_of("print(input()[::-1]); import sys; sys.exit(3)", stdin="abc\n")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, "cba\n", "")
    assert outcome.seconds > 0 and not outcome.timed_out and not outcome.cut


def test_an_exception_shows_the_programs_own_lines_alone() -> None:
    outcome = outcome_of("def f():\n    return 1 / 0\n\nf()\n")
    assert outcome.exit_code == 1
    assert 'program.py", line 4' in outcome.stderr and "ZeroDivisionError" in outcome.stderr
    assert "exec(" not in outcome.stderr


def test_a_syntax_error_is_the_programs() -> None:
    outcome = outcome_of("def :")
    assert outcome.exit_code == 1 and "SyntaxError" in outcome.stderr


def test_what_takes_too_long_is_killed_with_all_that_it_started() -> None:
    code = (
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    outcome = outcome_of(code, timeout_s=1.0)
    assert outcome.timed_out and outcome.exit_code < 0
    assert not running(int(outcome.stdout))


@pytest.mark.parametrize("session", [False, True])
def test_what_a_program_leaves_running_is_killed_when_it_ends(session: bool) -> None:
    code = (
        "import subprocess\n"
        f"print(subprocess.Popen(['sleep', '600'], start_new_session={session}).pid)\n"
    )
    outcome = outcome_of(code)
    assert outcome.exit_code == 0 and not outcome.timed_out
    asyncio.run(become(lambda: not running(int(outcome.stdout))))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_memory_is_bounded() -> None:
    outcome = outcome_of("x = bytearray(1 << 30)", memory_mib=256)
    assert outcome.exit_code == 1 and "MemoryError" in outcome.stderr


def test_processor_time_is_bounded() -> None:
    outcome = outcome_of("while True: pass", cpu_s=1)
    assert outcome.exit_code < 0 and not outcome.timed_out


def test_files_are_bounded() -> None:
    outcome = outcome_of("open('x', 'wb').write(bytes(2 << 20))", file_mib=1)
    assert outcome.exit_code != 0


def test_more_output_than_is_kept_is_cut_and_holds_nobody_up() -> None:
    outcome = outcome_of("print('x' * 3_000_000); print('end')", output_kib=1)
    assert outcome.exit_code == 0 and outcome.cut and outcome.stdout == "x" * 1024


def test_programs_see_no_environment_and_no_files_of_each_other() -> None:
    async def work(pool: SandboxPool) -> None:
        first = await pool.run(
            Program("open('left', 'w').write('x'); import os; print(os.getcwd())")
        )
        second = await pool.run(Program("import os; print(os.listdir(), sorted(os.environ))"))
        folder, seen = first.stdout.strip(), second.stdout
        assert not Path(folder).exists()
        assert seen.startswith("[]") and "PYTHONPATH" not in seen

    run_in_pool(SandboxConfig(most=2), work)


def test_one_that_is_ready_is_used_and_another_takes_its_place() -> None:
    async def work(pool: SandboxPool) -> None:
        pool.prepare(1)
        await become(lambda: pool.ready == 1)
        outcome = await pool.run(Program("import sys; print('json' in sys.modules)"))
        assert outcome.stdout == "True\n"
        assert (pool.runs_total, pool.warm_total) == (1, 1)
        assert outcome.waited_s < pool.start_s
        await become(lambda: pool.ready == 1)
        assert pool.starts_total == 2
        pool.prepare(0)
        assert pool.ready == 0

    run_in_pool(SandboxConfig(most=2), work)


def test_no_more_run_at_once_than_may_and_too_many_are_refused() -> None:
    async def work(pool: SandboxPool) -> None:
        most = 0

        async def one() -> None:
            nonlocal most
            await pool.run(Program("import time; time.sleep(0.05)"))
            most = max(most, pool.running + 1)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(one())
            await asyncio.sleep(0)
            assert pool.running == 0
        assert most == 1 and pool.runs_total == 4
        waiting = [asyncio.ensure_future(one()) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many programs wait"):
            await pool.run(Program(""))
        await asyncio.gather(*waiting)

    run_in_pool(SandboxConfig(most=1), work)


def test_one_that_died_meanwhile_is_not_handed_out() -> None:
    async def work(pool: SandboxPool) -> None:
        pool.prepare(1)
        await become(lambda: pool.ready == 1)
        session = pool._ready[0]
        session._started.process.kill()
        await become(lambda: not session.alive)
        assert (await pool.run(Program("print(1)"))).stdout == "1\n"
        assert pool.warm_total == 0

    run_in_pool(SandboxConfig(most=2), work)


def test_what_cannot_start_says_so_and_the_next_one_may() -> None:
    async def work(pool: SandboxPool) -> None:
        with pytest.raises(OSError, match="no_such_module"):
            await pool.run(Program("print(1)"))
        assert pool.running == 0

    run_in_pool(SandboxConfig(most=1, preload=("no_such_module",)), work)


def test_who_goes_while_waiting_leaves_what_comes_to_others() -> None:
    async def work(pool: SandboxPool) -> None:
        task = asyncio.ensure_future(pool.run(Program("print(1)")))
        await asyncio.sleep(0)
        task.cancel()
        assert (await pool.run(Program("print(2)"))).stdout == "2\n"

    run_in_pool(SandboxConfig(most=1), work)


def test_sandboxes_end_with_their_parent() -> None:
    async def work(pool: SandboxPool) -> None:
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        script = (
            "import asyncio, time\n"
            "from serving.sandbox import *\n"
            "from serving.sandbox.process import ProcessStarter\n"
            "config = SandboxConfig(most=1)\n"
            "async def main():\n"
            "    pool = SandboxPool(config, ProcessStarter(config), time.monotonic)\n"
            "    pool.prepare(1)\n"
            "    while not pool.ready: await asyncio.sleep(0.01)\n"
            "    print(pool._ready[0]._started.process.pid, flush=True)\n"
            f"    await pool.run(Program({code!r}))\n"
            "asyncio.run(main())\n"
        )
        parent = await asyncio.create_subprocess_shell(
            f"exec python -c {shlex.quote(script)}",
            stdout=asyncio.subprocess.PIPE,
            env=dict(os.environ),
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        assert running(pid)
        parent.kill()
        await parent.wait()
        await become(lambda: not running(pid))

    run_in_pool(SandboxConfig(), work)


def test_a_container_has_no_network_and_bounds() -> None:
    config = SandboxConfig(kind="docker", most=1, memory_mib=128)
    command = DockerStarter(config).command("n", ("{}",))
    line = shlex.join(command)
    for part in (
        "--network none",
        "--read-only",
        "--memory 128m",
        "--cap-drop ALL",
        "--user 65534",
    ):
        assert part in line
    assert command[-1] == "{}" and command.index(config.image) < command.index("python")


def test_a_program_runs_in_a_container() -> None:
    async def whole() -> Outcome | None:
        if not await docker_answers():
            return None
        config = SandboxConfig(kind="docker", most=1)
        pool = SandboxPool(config, DockerStarter(config), time.monotonic)
        try:
            return await pool.run(Program("print(6 * 7)"))
        finally:
            await pool.close()

    outcome = asyncio.run(whole())
    if outcome is None:
        pytest.skip("no Docker daemon answers here")
    assert (outcome.exit_code, outcome.stdout) == (0, "42\n")

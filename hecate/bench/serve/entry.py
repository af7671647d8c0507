"""Where the benchmark of serving begins: what it needs is imported only when it runs."""

from __future__ import annotations

from hecate.bench.report import BenchOptions, Report
from hecate.errors import ConfigError


def bench_serve(options: BenchOptions) -> Report:
    """Our engine and vLLM in turns, open loops, and the stack around an engine.

    Raises ``ConfigError`` where the packages for serving are missing, and for a trace.
    """
    try:
        from hecate.bench.serve.run import run_bench
    except ModuleNotFoundError as error:
        raise ConfigError(
            "hecate bench serve needs packages that are not here",
            got=str(error),
            fix="install hecate[bench]",
        ) from error
    return run_bench(options)

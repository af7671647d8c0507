"""Where the benchmark of applications begins: what it needs is imported only when it runs."""

from __future__ import annotations

from hecate.bench.report import BenchOptions, Report
from hecate.errors import ConfigError


def bench_gittins(options: BenchOptions) -> Report:
    """Applications under all policies. Raises ``ConfigError`` where packages miss."""
    try:
        from hecate.bench.gittins.run import run_bench
    except ModuleNotFoundError as error:
        raise ConfigError(
            "hecate bench gittins needs packages that are not here",
            got=str(error),
            fix="install hecate[serve]",
        ) from error
    return run_bench(options)

"""Where the soak begins: what it needs is imported only when it runs."""

from __future__ import annotations

from hecate.bench.report import BenchOptions, Report
from hecate.errors import ConfigError


def bench_soak(options: BenchOptions) -> Report:
    """Mixed load on a whole stack. Raises ``ConfigError`` where packages are missing."""
    try:
        from hecate.bench.soak.run import run_bench
    except ModuleNotFoundError as error:
        raise ConfigError(
            "hecate bench soak needs packages that are not here",
            got=str(error),
            fix="install hecate[bench]",
        ) from error
    return run_bench(options)

"""Where the benchmark of adapters begins: what it needs is imported only when it runs."""

from __future__ import annotations

from hecate.bench.report import BenchOptions, Report
from hecate.errors import ConfigError


def bench_lora(options: BenchOptions) -> Report:
    """Adapters resident and cold, and placement. Raises ``ConfigError`` where packages miss."""
    try:
        from hecate.bench.lora.run import run_bench
    except ModuleNotFoundError as error:
        raise ConfigError(
            "hecate bench lora needs packages that are not here",
            got=str(error),
            fix="install hecate[serve]",
        ) from error
    return run_bench(options)

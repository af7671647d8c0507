"""Measurements, each beside what it is to be compared with.

| file | decides or executes | in -> out |
|---|---|---|
| report.py | | what a benchmark is asked and answers; its table and its JSON |
| machine.py | executes | the machine, the packages, the commit of a measurement |
| train.py | executes | this trainer and its peers, all models and layouts -> a report |
| planner.py | executes | the planner's rules, on loads made up -> a report |
| rounds.py | executes | one model in one layout: the trainer and a peer in turns |
| workloads.py | executes | models and layouts to train; batches and weights on disk |
| routing_traces.py | decides | loads to replay -> routings that have them |
| crew.py | executes | the processes of one contender, from outside |
| worker.py | executes | one of these processes, from inside |
| turns.py | executes | steps on request, timed |
| compare.py | decides | turns -> rows and summary |
| peers/ | executes | the contenders |
"""

from collections.abc import Callable

from hecate.bench.machine import machine_facts, source_commit
from hecate.bench.planner import bench_planner
from hecate.bench.report import BenchOptions, Report, document, render, write_json
from hecate.bench.train import bench_train

BENCHES: dict[str, Callable[[BenchOptions], Report]] = {
    "train": bench_train,
    "planner": bench_planner,
}

__all__ = [
    "BENCHES",
    "BenchOptions",
    "Report",
    "document",
    "machine_facts",
    "render",
    "source_commit",
    "write_json",
]

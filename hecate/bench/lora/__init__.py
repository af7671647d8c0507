"""Adapters: batches that have them beside the base's, cold starts, and where requests go.

| file | decides or executes | in -> out |
|---|---|---|
| entry.py | executes | asked for it, and not before, the rest is imported |
| run.py | executes | all of it -> a report |
| workload.py | decides | adapters' popularity and ranks, arrivals |
| engines.py | executes | an engine in this process, asked -> rates and latencies |
| placement.py | executes | policies, on real replicas and simulated ones -> who met the objective |
| replicas.py | executes | requests to two replicas of `hecate serve` -> how long they took |
| placed.py | decides | requests over simulated replicas -> the same |
"""

from hecate.bench.lora.entry import bench_lora

__all__ = ["bench_lora"]

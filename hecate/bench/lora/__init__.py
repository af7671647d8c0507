"""Adapters: batches that have them beside the base's, cold starts, and where requests go.

| file | decides or executes | in -> out |
|---|---|---|
| entry.py | executes | asked for it, and not before, the rest is imported |
| run.py | executes | all of it -> a report |
| workload.py | decides | adapters' popularity and ranks, arrivals |
| engines.py | executes | an engine in this process, asked -> rates and latencies |
| placed.py | decides | requests over simulated replicas -> who met the objective |
"""

from hecate.bench.lora.entry import bench_lora

__all__ = ["bench_lora"]

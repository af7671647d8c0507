"""Applications under all policies, on a simulated engine and on the real one.

| file | decides or executes | in -> out |
|---|---|---|
| entry.py | executes | asked for it, and not before, the rest is imported |
| run.py | executes | all of it -> a report |
| classes.py | - | nine classes of applications, by their shapes |
| workload.py | decides | shapes and a generator -> instances, and when they come |
| steps.py | decides | measured steps -> how long any step takes |
| replica.py | decides | requests and their places -> the steps of an engine |
| simulator.py | decides | instances and an order -> when each is done |
| matrix.py | decides | every policy on the same instances -> when each is done |
| figures.py | decides | when each was done -> rows and summary |
| mg1.py | decides | one server -> what is measured beside theory |
| real.py | executes | the native engine: its steps, and instances on it |
| applications/ | executes | five real applications with real tools, on a server |
| prewarm/ | decides | the same on a coarse engine -> hits of caches, starts that are hidden |
"""

from hecate.bench.gittins.entry import bench_gittins

__all__ = ["bench_gittins"]

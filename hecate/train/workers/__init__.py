"""Training on Ray: workers on the nodes of a cluster, started again when some are lost.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | decides | how many workers, on what, how often they may fail |
| launch.py | executes | a run's configuration -> workers on a cluster -> its result |
| cluster.py | executes | a task -> on every worker of a cluster; the one file that imports Ray |
| work.py | executes | one worker's part of a run |
| coordinator.py | executes | what workers and driver tell each other -> workers.jsonl |
| failures.py | decides | a failed group of workers -> start again, or end and why |
| output.py | executes | a worker's output -> the run's folder -> the driver's terminal |
"""

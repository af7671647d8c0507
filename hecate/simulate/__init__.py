"""Simulation: a step's time and memory on machines that are not here.

| file | decides or executes | in -> out |
|---|---|---|
| cluster.py | | devices and links, as a file describes them |
| workload.py | | a model's shape, a device's batch, how loads are spread |
| loads.py | decides | skew, drift -> loads of each step |
| costs.py | decides | cluster, workload -> seconds of everything on one rank |
| network.py | decides | rows, placements -> seconds of the busiest links |
| strategies.py | decides | a name -> one of the runtime's policies |
| timeline.py | decides | work in the order of issue -> when it ends |
| step.py | decides | layers -> a training step on the timeline |
| play.py | decides | a policy, a trace -> layers' work, step by step |
| memory.py | decides | owned and copied experts -> bytes of a device |
| run.py | decides | cluster, workload, strategy -> time and memory of a step |
| measured.py | decides | micro-benchmarks of this machine -> seconds of everything |
| measured_run.py | decides | these, a trace, a policy -> training steps |
| sweep.py | decides | devices, strategies -> outcomes beside expert parallelism |
| picture.py | decides | outcomes -> a picture of scaling |
| files.py | executes | names and paths -> clusters and workloads |
"""

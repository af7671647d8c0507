"""Applications under all policies, on a simulated engine and on the real one.

| file | decides or executes | in -> out |
|---|---|---|
| classes.py | - | nine classes of applications, by their shapes |
| workload.py | decides | shapes and a generator -> instances, and when they come |
| steps.py | decides | measured steps -> how long any step takes |
| replica.py | decides | requests and their places -> the steps of an engine |
| simulator.py | decides | instances and an order -> when each is done |
"""

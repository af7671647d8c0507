"""Minutes of mixed load on ``hecate serve``, with clients that leave and replicas that are killed.

| file | decides or executes | in -> out |
|---|---|---|
| entry.py | executes | asked for it, and not before, the rest is imported |
| run.py | executes | all of it -> a report |
| references.py | executes | a model and its adapters -> their answers, by transformers and PEFT |
| asks.py | decides | chance -> the next request, and what may come of it |
| bad.py | decides | requests that are to be refused |
| meaning.py | decides | loads and unloads -> what an adapter's name meant at a time |
| checks.py | decides | a reply -> right, or what is wrong with it |
| clients.py | executes | requests sent, each with a deadline; clients that leave |
| load.py | executes | many clients at once, adapters that change, moments of quiet |
| watched.py | executes | processes: memory, handles, threads; and who kills them |
| accounts.py | decides | outcomes and samples -> rows and summary |
"""

from hecate.bench.soak.entry import bench_soak

__all__ = ["bench_soak"]

"""Serving beside vLLM: throughput, latencies under load, and what the stack around an engine costs.

| file | decides or executes | in -> out |
|---|---|---|
| entry.py | executes | asked for it, and not before, the rest is imported |
| run.py | executes | all of it, one model after another -> a report |
| models.py | executes | sizes -> a folder with random weights and a tokenizer |
| roofline.py | executes | the machine's rates; a model's needs -> the least time |
| contender.py | executes | a process that serves, asked over its standard input |
| sides.py | executes | our engine and vLLM's with equal settings, started |
| offline.py | executes | all requests at once, the sides in turns -> rates |
| online.py | executes | requests that do not wait -> latencies; a prefix that is known |
| pressure.py | executes | answers that outgrow the memory, with and without swap -> rates |
| stack.py | executes | an engine alone and behind ``hecate serve`` |
| command.py | executes | ``hecate serve`` as a process, while it is needed |
| margins.py | decides | measurements -> rows and summary |
"""

from hecate.bench.serve.entry import bench_serve

__all__ = ["bench_serve"]

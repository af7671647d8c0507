"""Load for engines and apps, and what comes of it.

| file | decides or executes | in -> out |
|---|---|---|
| traces.py | executes | a published trace's file -> arrivals |
| arrivals.py | decides | arrivals, a rate, a context -> requests with prompts |
| timings.py | decides | when tokens came -> latencies and their percentiles |
| open_loop.py | executes | requests at their times, whatever is still under way -> timings |
| senders.py | executes | one request -> its tokens, of an engine here or over HTTP |
| adapters.py | executes | ranks -> folders with random adapters |
| steps.py | executes | an engine's configuration -> how long its steps take |
| worker.py | executes | an engine in a process of its own, asked over its standard input |
| vllm_offline.py | executes | the same of vLLM's own offline interface, in vLLM's environment |
"""

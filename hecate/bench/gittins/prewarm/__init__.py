"""What prewarming is good for: applications on a simulated engine, their adapters, contexts and
containers kept and fetched by one rule or another.

| file | decides or executes | in -> out |
|---|---|---|
| served.py | decides | applications, an engine of so many answers at once -> when what happens |
| claims.py | decides | who is under way -> what is to be kept, by each rule |
| adapters.py | decides | requests -> hits of adapters on the device and in the host's memory |
| contexts.py | decides | requests -> hits of keys and values that were computed before |
| containers.py | decides | container units -> starts that are hidden, and what idles for it |
| figures.py | decides | seeds, loads -> the rows and the summary |
"""

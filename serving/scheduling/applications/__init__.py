"""Applications of many requests: what is known of their demand, and who goes first (2506.14851).

| file | decides or executes | in -> out |
|---|---|---|
| traces.py | - | what an instance did, as values |
| live.py | - | an instance under way, and its requests |
| prospects.py | - | what an instance may still need, as samples |
| policies/ | decides | instances and requests -> ranks |
"""

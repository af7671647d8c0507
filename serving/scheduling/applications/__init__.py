"""Applications of many requests: what is known of their demand, and who goes first (2506.14851).

| file | decides or executes | in -> out |
|---|---|---|
| config.py | - | how much is remembered |
| tags.py | decides | what a request says of its application -> tags, or none |
| traces.py | - | what an instance did, as values |
| live.py | - | an instance under way, and its requests |
| book.py | decides | what happens -> instances under way, histories of their classes |
| steady.py | decides | a clock that may jump -> one that does not |
| demand.py | decides | tokens -> seconds of the device |
| graph.py | decides | traces of a class -> what an instance of it may still need |
| prospects.py | - | what an instance may still need, as samples |
| policies/ | decides | instances and requests -> ranks |
| counters.py | - | what each was served, of those between whom it is even |
| order.py | decides | ranks -> who goes next: aged, steady, fair to tenants |
"""

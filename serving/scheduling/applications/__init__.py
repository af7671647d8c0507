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
| classes.py | decides | a class's use -> which classes are remembered |
| history_file.py | executes | histories of classes <-> a file |
| graph.py | decides | traces of a class -> what an instance of it may still need |
| columns.py, points.py | - | traces as columns; each point in them, what was behind and to come |
| conditioned.py | decides | what an instance has shown -> the points that are like it |
| drift.py | decides | figures of instances -> how many of the newest are unlike the rest |
| prospects.py | - | what an instance may still need, as samples |
| gittins.py | decides | samples, an age -> the index |
| ranks.py | decides | instances -> their indices, all at once |
| policies/ | decides | instances and requests -> ranks |
| counters.py | - | what each was served, of those between whom it is even |
| order.py | decides | ranks -> who goes next: aged, steady, fair to tenants |
"""

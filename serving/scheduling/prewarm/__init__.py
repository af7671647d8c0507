"""What an application will need next is made ready before it asks (Hermes, 2506.14851).

Decisions alone: what runs them is a backend's.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | - | when to begin, when to give up, what waste is allowed |
| shapes.py | decides | traces of a class -> how often which unit follows, and how long each takes |
| coming.py | decides | a shape, what is open -> which units come, how probably, and when |
| decide.py | decides | chances -> what to begin and what to give up |
| keeping.py | decides | ranks and chances -> what a cache keeps, and what goes first |
| ledger.py | decides | beginnings and uses -> seconds saved and seconds held in vain |
| threshold.py | decides | the ledger's seconds -> a chance from which to begin |
"""

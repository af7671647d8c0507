"""One machine's ranks under one supervisor: a rank that dies is replaced, the others stay.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | | how patient the supervisor is |
| roster.py | decides | who died, how far the run is -> who trains next |
| messages.py | | what a supervisor and its members tell each other |
| member.py | executes | one rank: joins, trains, leaves, joins again |
| members.py | executes | the processes of the members, from outside |
| supervisor.py | executes | generations of members, until one comes to the end |
| launch.py | executes | ``hecate train --ranks`` |
| recoveries.py | executes | how each one after the first came about -> a file, a line |
"""

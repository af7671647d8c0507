"""Traces of chosen steps, and what they show: time by phase, and communication left exposed.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | says | which steps and ranks, and how much of them |
| recorder.py | executes | steps of a run -> each rank's Chrome trace, ``summary.json``, a table |
| watched.py | executes | a transport -> one whose collectives a trace shows whole |
| trace.py | decides | a Chrome trace's events -> spans |
| phases.py | decides | spans -> the phase and layer of every moment |
| overlap.py | decides | spans -> what of each kind of collective was hidden |
| intervals.py | decides | intervals -> their union, intersection, length |
| summary.py | decides | a trace -> a rank's figures; those of all ranks -> a record, a table |
"""

from hecate.train.profile.recorder import Recorder

__all__ = ["Recorder"]

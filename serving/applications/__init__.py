"""Requests of applications before the engines: tagged, ordered, released, learnt from (2506.14851).

| file | decides or executes | in -> out |
|---|---|---|
| config.py | - | which order, what is remembered, how much waits |
| release.py | decides | who waits and runs, places -> whose turn it is, priorities of engines |
| calibration.py | decides | what engines computed, and how long -> what a token costs |
| queue.py | executes | a `Backend` -> the same with turns |
| view.py | decides | histories and instances under way -> what people are told |
| ordered.py | executes | all of it, and a clock -> the `Applications` of the routes |
"""

from serving.applications.config import ApplicationsConfig
from serving.applications.ordered import OrderedApplications

__all__ = ["ApplicationsConfig", "OrderedApplications"]

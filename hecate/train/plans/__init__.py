"""What ``hecate plan`` does: a run's recorded loads under any policy, compared and drawn.

| file | what it does |
|---|---|
| settings.py | a run's settings, ``--set`` -> costs, ranks and owners of a replay |
| compare.py | recorded loads, settings -> every policy's steps, and the figures of each |
| terminal.py | these -> a table, strips of imbalance over time, a placement |
| picture.py | these -> the same as an SVG file |
"""

from hecate.train.plans.compare import Comparison, compare, document
from hecate.train.plans.picture import draw
from hecate.train.plans.settings import PlanConfig
from hecate.train.plans.terminal import show

__all__ = ["Comparison", "PlanConfig", "compare", "document", "draw", "show"]

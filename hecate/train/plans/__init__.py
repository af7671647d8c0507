"""What ``hecate plan`` does: a run's recorded loads under any policy, compared and drawn.

| file | what it does |
|---|---|
| compare.py | recorded loads, settings -> every policy's steps, and the figures of each |
| terminal.py | these -> a table, strips of imbalance over time, a placement |
| picture.py | these -> the same as an SVG file |
"""

from hecate.train.plans.compare import Comparison, PlanConfig, compare, document
from hecate.train.plans.picture import draw
from hecate.train.plans.terminal import show

__all__ = ["Comparison", "PlanConfig", "compare", "document", "draw", "show"]

"""The experts on one rank: grouped GEMMs forward and backward, gradients written in place.

Rows come sorted by expert. Every kernel writes weight gradients straight into the experts'
buffers, where autograd would allocate, zero and add one tensor per use.

| file | decides or executes | in -> out |
|---|---|---|
| math.py | decides | an experts module -> what one of its experts computes |
| protocol.py | decides | what a kernel gets and gives |
| looped.py | executes | rows by expert -> results, one expert after another |
| grouped.py | executes | rows by expert -> results, one launch for all of them |
| adapted.py | executes | rows by expert -> results of frozen experts and their adapters |
| choice.py | decides | device, dtype, layout -> the kernel |
"""

from __future__ import annotations

from hecate.fssdp.experts.adapted import AdaptedExperts, AdaptedKernel
from hecate.fssdp.experts.choice import KERNELS, fits_grouped, kernel_for, kernel_of
from hecate.fssdp.experts.grouped import GroupedExperts
from hecate.fssdp.experts.looped import LoopedExperts
from hecate.fssdp.experts.math import ExpertMath
from hecate.fssdp.experts.protocol import ExpertKernel, HeldExperts, Saved

__all__ = [
    "KERNELS",
    "AdaptedExperts",
    "AdaptedKernel",
    "ExpertKernel",
    "ExpertMath",
    "GroupedExperts",
    "HeldExperts",
    "LoopedExperts",
    "Saved",
    "fits_grouped",
    "kernel_for",
    "kernel_of",
]

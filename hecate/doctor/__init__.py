"""What this machine can run, what is missing, and how to get it.

| file | what it finds |
|---|---|
| collect.py | all of the below, in order |
| report.py | nothing: rows, and how they look |
| software.py | versions of packages, the compiler |
| hardware.py | cores, memory, disks, GPUs |
| network.py | whether a process group forms, NCCL, Ray |
| speed.py | which dtypes are fast here, measured |
"""

from hecate.doctor.collect import collect
from hecate.doctor.report import Report, Row, render

__all__ = ["Report", "Row", "collect", "render"]

"""Transports: ways to carry a schedule out.

| file | decides or executes | in -> out |
|---|---|---|
| local.py | executes | schedule, rows of all ranks in one process -> copies, or sums at owners |
"""

"""Engines: what answers requests token by token.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | - | what an engine is, for everything above it |
"""

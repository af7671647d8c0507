"""The memory of a training run: what it should be, part by part, and what it was.

| file | decides or executes | in -> out |
|---|---|---|
| parts.py | decides | sizes of a rank -> its bytes, part by part |
| live.py | executes | a block of code -> bytes of tensors alive in it, at most |
| traced.py | executes | a model of shapes, a micro-batch -> bytes of its activations |
| estimate.py | executes | a configuration, a world size -> the fullest rank's parts |
| table.py | decides | parts -> a line or a table for people |
| record.py | executes | a run's estimate and what its ranks measured -> console, memory.json |
"""

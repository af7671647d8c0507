"""Hecate: train Mixture-of-Experts models with fully sharded sparse data parallelism.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | decides | YAML and ``--set`` -> a frozen, checked configuration |
| yaml_text.py | executes | YAML text -> values with their lines, and back |
| errors.py | decides | what went wrong -> one message in four parts |
| mesh.py | executes | a launcher's environment -> process groups |
| files.py | executes | text -> a file that is whole or not there; locks |
| folders.py | decides | a setting, the platform -> where caches lie |
| ray_start.py | executes | settings -> a Ray cluster that is joined or started |
| svg.py | decides | shapes, labels -> the text of a picture |
"""

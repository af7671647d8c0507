"""The command line: one thin file for each command, loaded only when it is the one that runs.

| file | what it does |
|---|---|
| app.py | the table of commands; exit codes and messages |
| train.py | CONFIG -> a run folder |
| eval.py | a run -> loss, perplexity and bits per byte on its held-out files |
| export.py | a run -> a Hugging Face folder |
| generate.py | a run or a Hugging Face folder, a prompt -> text |
| serve.py | a configuration, a run or a Hugging Face folder -> an API and a page |
| apps.py | a server -> what it knows of applications |
| profile.py | what `hecate serve` gets -> how long its steps take here |
| plan.py | a run's router loads -> what each policy would have made of them |
| report.py | a run -> one HTML file |
| memory.py | CONFIG, a number of ranks -> what the fullest would take |
| doctor.py | this machine -> what it can run, what is missing |
| simulate.py | a cluster, a workload -> predicted steps under each policy |
| bench.py | a benchmark's name -> a table, and a JSON file |
"""

from hecate.cli.app import main

__all__ = ["main"]

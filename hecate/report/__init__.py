"""A run's folder as one HTML file: what ``hecate report`` makes.

Nothing here imports what trains: a folder is read by the names and shapes of its files, so that a
report takes a second and works for runs of other versions. Tests hold it to the files that the
training code writes.

| file | decides or executes | in -> out |
|---|---|---|
| records.py | decides | what a folder says, as values |
| lines.py | executes | a file of JSON lines -> its lines, and what was passed over |
| metrics.py | executes | metrics.jsonl -> what was logged, each step once |
| loads.py | executes | loads.jsonl -> where each step lies, the loads of some |
| starts.py | executes | starts.jsonl, recoveries.jsonl -> where a run was begun and taken up |
| profile.py | executes | profile/summary.json -> phases, what was left exposed |
| bins.py | decides | long series -> as many means as can be seen |
| curves.py | decides | what was logged -> curves over steps |
| maps.py | decides | loads -> maps of layers and of experts |
| spent.py | decides | what was logged -> where time went |
| events.py | decides | what was logged -> what happened |
| facts.py | decides | all of these -> figures at the head, what is missing |
| html.py, page/ | decides | all of these -> the page; its style and scripts |
| build.py | executes | a run's folder -> the file |
"""

from hecate.report.build import Written, report

__all__ = ["Written", "report"]

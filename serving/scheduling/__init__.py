"""Which tokens a step computes: decisions, without a model or a clock.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | - | how much runs at once, and how much may wait |
| sequences.py | - | one answer on its way: its tokens and its blocks |
| decisions.py | - | what a step computes, as a value |
| preemption.py | decides | a victim's blocks -> copies of them, or none, and what it goes on from |
| costs.py | decides | measured seconds -> swap or recompute |
| scheduler.py | decides | what waits and runs, free blocks -> the next step |
| applications/ | decides | what applications did -> what they may need, and who goes first |
| prewarm/ | decides | the same -> what is made ready before it is asked for |
"""

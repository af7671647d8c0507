"""Memory for keys and values: blocks of token slots, who holds them, the tensors behind them.

| file | decides or executes | in -> out |
|---|---|---|
| tiers.py | - | kinds of memory, one use of a block, copies between them, as values |
| blocks.py | decides | a pool of blocks -> who holds which |
| tables.py | decides | positions of a sequence -> its blocks, copies of those it shares |
| rendezvous.py | executes | a key -> a file without a name that another process holds |
| swap.py | decides | blocks of a sequence that gives way -> a second pool, and back |
| kv.py | executes | the tensors of a device's blocks, layer by layer |
| tiered.py | executes | transfers between tiers -> copied blocks |
"""

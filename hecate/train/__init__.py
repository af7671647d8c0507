"""A training run: composition, step, loop, metrics.

| file | decides or executes | in -> out |
|---|---|---|
| parallelism.py | decides | another program's key -> what to do here instead |
| config.py | decides | the tree of a run's settings |
| build.py | executes | configuration, ranks -> model, experts, optimizer, step |
| adapters.py | executes | LoRA: what is frozen, what adapters start from, how much trains |
| dense/ | executes | dense parameters -> under FSDP2, DDP or DeepSpeed |
| optim.py | decides | parameter groups by role, learning rate by step |
| muon.py, expert_matrices.py | executes | Muon's update, of dense matrices and of each expert's |
| ema.py | executes | weights after each step -> their average |
| moments.py | executes | a parameter -> what the optimizer keeps of it |
| reshard.py | executes | who owns which expert -> and from a checkpoint |
| spikes.py | decides | a step's loss and gradient norm -> taken, left out, or back |
| step.py | executes | micro-batches -> one optimizer step over all ranks |
| loop.py | executes | steps, logging, checkpoints, evaluations |
| state.py | executes | a trainer -> named tensors of a checkpoint |
| run.py, evaluate.py, generate.py | executes | what the commands do |
| inputs.py | executes | what a run trains on -> tokenizer, tokens, a rank's micro-batches |
| resume.py | executes | begins a run, anew or from a checkpoint |
| records.py | executes | opens what a run writes as it goes: start, figures, loads |
| notices.py | decides | what a run says to people beside its figures |
| chatter.py | executes | what libraries warn of -> once, on one rank, above the live line |
| expert_figures.py | decides | steps, seconds of all ranks -> what the log says of them |
| router_health.py | decides | the routers' counts -> entropy, dead experts |
| metrics.py, memory.py, peak.py | decides / executes | the figures of a run |
| noise.py | decides / executes | AdamW's moments -> the gradient noise scale |
| footprint/ | decides | a configuration, a world size -> the memory of its fullest rank |
| host_memory.py | executes | keeps freed memory with the process |
| mirrored.py | executes | checkpoints that appear -> a mirror, and back |
| workers/ | executes | the same training on the workers of a Ray cluster |
| stopping.py | executes | signals -> the step under way is the last |
| elastic/ | executes | ranks of one machine that replace each other |
| watchdog.py | executes | a rank that makes no progress -> ends, and says where |
| starts.py | executes | where a run was begun and taken up, on what -> a file |
| loads.py | executes | each step's router loads -> a file, and back |
| plans/ | decides | recorded loads, policies -> what each would have made of them |
| logging/ | executes | figures -> console, JSON Lines, Weights & Biases, TensorBoard |
| profile/ | executes | chosen steps -> traces, and what of communication was exposed |
"""

"""Measurements, each beside what it is to be compared with.

| file | decides or executes | in -> out |
|---|---|---|
| report.py | | what a benchmark is asked and answers; its table and its JSON |
| machine.py | executes | the machine, the packages, the commit of a measurement |
| train.py | executes | this trainer and its peers, all models and layouts -> a report |
| fssdp.py | executes | FSSDP, its rivals and the ceiling under replayed loads -> a report |
| standings.py | executes | its stages, one after another on the same pair of ranks |
| contest.py | executes | one row of it on one rank: every strategy in turn |
| copies.py | executes | gathers hidden or not, copies kept or gathered again |
| sparse_gather.py | executes | a sparse gather beside dense ones |
| strategies.py | executes | a trainer under one policy, one step at a time |
| replay.py | decides | a trace in whole numbers; its choices in the router's place |
| recorded_loads.py | executes | the loads of a real training |
| margins.py | decides | steps of all strategies -> rows and summary |
| faults.py | executes | runs whose ranks are killed, gone on with in three ways -> a report |
| disturbed.py | executes | such a run, and who kills |
| effective.py | decides | when steps were done -> what of the time counts |
| network.py | executes | transports and plans over a slow link between two nodes -> a report |
| namespaces.py | executes | two network namespaces and the link between them |
| node_ranks.py | executes | a rank in one of them, its collectives and steps |
| curves.py | executes | training under every policy beside a single process -> a report |
| training.py | executes | one training under one policy |
| divergence.py | decides | curves -> what they may differ by, rows and summary |
| planner.py | executes | the planner's rules, on loads made up -> a report |
| paper.py | decides | the paper's figures beside simulated ones -> a report |
| simulated.py | decides | simulated outcomes -> a report |
| simulator.py | executes | runs of two ranks beside what the simulator says of them -> a report |
| gittins/ | executes | applications under all policies, simulated and real -> a report |
| lora/ | executes | adapters beside the base, cold ones beside resident ones -> a report |
| serve/ | executes | an engine beside vLLM, and the stack around it -> a report |
| soak/ | executes | minutes of mixed load on a whole stack, replicas killed -> a report |
| micro.py | executes | what a step consists of, each part on its own |
| dense_layers.py | executes | layers without their experts, in the trainer's own step |
| rounds.py | executes | one model in one layout: the trainer and a peer in turns |
| workloads.py | executes | models and layouts to train; batches and weights on disk |
| conversations.py | executes | the standard library -> conversations |
| adapters.py | executes | what adapters begin with, on disk |
| routing_traces.py | decides | loads to replay -> routings that have them |
| crew.py | executes | the processes of one contender, from outside |
| worker.py | executes | one of these processes, from inside |
| turns.py | executes | steps on request, timed |
| compare.py | decides | turns -> rows and summary |
| peers/ | executes | the contenders |
"""

from collections.abc import Callable

from hecate.bench.curves import bench_curves
from hecate.bench.faults import bench_faults
from hecate.bench.fssdp import bench_fssdp
from hecate.bench.gittins import bench_gittins
from hecate.bench.lora import bench_lora
from hecate.bench.machine import machine_facts, source_commit
from hecate.bench.network import bench_network
from hecate.bench.paper import bench_paper
from hecate.bench.planner import bench_planner
from hecate.bench.report import BenchOptions, Report, document, render, write_json
from hecate.bench.serve import bench_serve
from hecate.bench.simulator import bench_simulator
from hecate.bench.soak import bench_soak
from hecate.bench.train import bench_train

BENCHES: dict[str, Callable[[BenchOptions], Report]] = {
    "train": bench_train,
    "fssdp": bench_fssdp,
    "network": bench_network,
    "faults": bench_faults,
    "planner": bench_planner,
    "paper": bench_paper,
    "simulator": bench_simulator,
    "curves": bench_curves,
    "serve": bench_serve,
    "lora": bench_lora,
    "soak": bench_soak,
    "gittins": bench_gittins,
}

__all__ = [
    "BENCHES",
    "BenchOptions",
    "Report",
    "document",
    "machine_facts",
    "render",
    "source_commit",
    "write_json",
]

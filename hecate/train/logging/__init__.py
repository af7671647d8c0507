"""Metrics of a run, to a console, a JSON Lines file and Weights & Biases.

| file | what it does |
|---|---|
| protocol.py | what a sink is, and the names of metrics |
| config.py | LoggingConfig: which sinks, how often |
| sinks.py | names -> open sinks, on rank 0 |
| console.py | a live bar on a terminal, plain lines elsewhere |
| jsonl.py | metrics.jsonl, one line for each logged step |
| wandb.py | Weights & Biases, offline unless asked and able to upload |
"""

from hecate.train.logging.config import LoggingConfig
from hecate.train.logging.protocol import Run, Sink, Value
from hecate.train.logging.sinks import SINKS, open_sinks

__all__ = ["SINKS", "LoggingConfig", "Run", "Sink", "Value", "open_sinks"]

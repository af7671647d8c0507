"""Metrics of a run, to a console, a JSON Lines file, Weights & Biases and TensorBoard.

| file | what it does |
|---|---|
| protocol.py | what a sink is, and the names of metrics |
| config.py | LoggingConfig: which sinks, how often |
| sinks.py | names -> open sinks, on rank 0 |
| appends.py | a file that grows by whole pieces |
| lasting.py | a sink that a full disk does not end the run through |
| sections.py | metrics -> charts in sections, for the last two |
| console.py | a live bar on a terminal, plain lines elsewhere |
| jsonl.py | metrics.jsonl, one line for each logged step |
| wandb.py | Weights & Biases, offline unless asked and able to upload |
| tensorboard.py | TensorBoard's event files |
"""

from hecate.logging.config import LoggingConfig
from hecate.logging.protocol import OpenSink, Run, Sink, Value
from hecate.logging.sinks import SINKS, open_sinks

__all__ = ["SINKS", "LoggingConfig", "OpenSink", "Run", "Sink", "Value", "open_sinks"]

"""A workload that trains in milliseconds, on a little text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hecate.bench.conversations import TEMPLATE
from hecate.bench.workloads import DEMO
from hecate.data import DataConfig
from hecate.data.config import ChatConfig

TOY = replace(
    DEMO,
    name="toy",
    sizes={
        **DEMO.sizes,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_experts": 4,
        "moe_intermediate_size": 16,
    },
    vocab_size=300,
    sequence_tokens=32,
    batch_sequences=6,
)


def text_file(folder: Path) -> Path:
    """A file of documents of a line each, so that a row holds several."""
    lines = Path(json.decoder.__file__).read_text().splitlines()
    path = folder / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines if line.strip()))
    return path


def conversations(folder: Path) -> DataConfig:
    """Short ones, so that some rows of the toy hold several and some end in padding."""
    path = folder / "conversations.jsonl"
    turns = [("2 + 3?" if n % 3 else "hi", "x" * (1 + n % 5)) for n in range(60)]
    with path.open("w", encoding="utf-8") as file:
        for question, answer in turns:
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return DataConfig(
        kind="chat",
        path=str(path),
        cache=str(folder / "cache"),
        chat=ChatConfig(template=TEMPLATE),
    )

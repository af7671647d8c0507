"""From files of text to packed micro-batches that resume at the exact token.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | decides | what a run reads, and how |
| discovery.py | executes | a path -> its files and their digests |
| readers.py | executes | a file -> pieces of text, records |
| corpora.py | decides | files -> documents to train on, documents held out |
| tokenizer.py | executes | a folder or a corpus -> the run's tokenizer |
| cache.py | executes | builds a folder once for all processes of a machine |
| tokens.py | executes | corpus, tokenizer -> memory-mapped tokens of both splits |
| facts.py | decides | held-out tokens -> entropy, bytes, xz size |
| packing.py | decides | document lengths -> windows, labels, positions |
| dataset.py | executes | tokens -> micro-batches of a rank |
| progress.py | executes | bytes done -> bars on a console |
"""

from hecate.data.config import DataConfig, TokenizerConfig
from hecate.data.corpora import Corpus, load_corpus
from hecate.data.dataset import MicroBatch, TrainStream, held_out_batches
from hecate.data.facts import HeldOutFacts
from hecate.data.progress import Progress, progress_bars, quiet
from hecate.data.tokenizer import check_vocabulary, prepare_tokenizer
from hecate.data.tokens import TokenizedCorpus, TokenStore, open_tokens

__all__ = [
    "Corpus",
    "DataConfig",
    "HeldOutFacts",
    "MicroBatch",
    "Progress",
    "TokenStore",
    "TokenizedCorpus",
    "TokenizerConfig",
    "TrainStream",
    "check_vocabulary",
    "held_out_batches",
    "load_corpus",
    "open_tokens",
    "prepare_tokenizer",
    "progress_bars",
    "quiet",
]

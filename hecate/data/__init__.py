"""From files of text to packed micro-batches that resume at the exact token.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | decides | what a run reads, and how |
| discovery.py | executes | a path -> its files and their digests |
| readers.py | executes | a file -> pieces of text, records |
| tables.py | executes | a Parquet file, a saved split -> records |
| records.py | decides | the fields of a record -> its text |
| conversations.py | decides | the fields of a record -> the turns of a conversation |
| corpora.py | decides | files -> documents to train on, documents held out |
| tokenizer.py | executes | a folder or a corpus -> the run's tokenizer |
| chat_template.py | executes | conversations -> tokens, and which the assistant says |
| encoding.py | executes | corpus, tokenizer -> tokens of documents, a batch at a time |
| cache.py | executes | builds a folder once for all processes of a machine |
| tokens.py | executes | corpus, tokenizer -> memory-mapped tokens of both splits |
| facts.py | decides | held-out tokens -> entropy, bytes, xz size |
| best_fit.py | decides | lengths -> rows that hold them whole |
| packing.py | decides | document lengths -> windows, labels, positions |
| dataset.py | executes | tokens -> micro-batches of a rank |
| progress.py | executes | bytes done -> bars on a console |
"""

from hecate.data.config import DataConfig, TokenizerConfig
from hecate.data.corpora import Corpus, load_corpus
from hecate.data.dataset import MicroBatch, TrainStream, fit_rows, held_out_batches
from hecate.data.facts import HeldOutFacts
from hecate.data.packing import Fit
from hecate.data.progress import Progress, progress_bars, quiet
from hecate.data.tokenizer import check_vocabulary, prepare_tokenizer
from hecate.data.tokens import TokenizedCorpus, TokenStore, open_tokens

__all__ = [
    "Corpus",
    "DataConfig",
    "Fit",
    "HeldOutFacts",
    "MicroBatch",
    "Progress",
    "TokenStore",
    "TokenizedCorpus",
    "TokenizerConfig",
    "TrainStream",
    "check_vocabulary",
    "fit_rows",
    "held_out_batches",
    "load_corpus",
    "open_tokens",
    "prepare_tokenizer",
    "progress_bars",
    "quiet",
]

"""The stream of micro-batches: the same on every world, resumed exactly, nothing seen twice."""

import numpy as np
import pytest
import torch

from hecate.data.dataset import TrainStream, fit_rows, held_out_batches
from hecate.data.tokens import TokenStore
from hecate.errors import CheckpointError, ConfigError, DataError

LENGTHS = [7, 30, 2, 11, 1, 64, 5, 9, 23, 17]  # 169 tokens


def store(lengths=LENGTHS, digest="a", every=1):
    """Every token is a number of its own, from 1; 0 pads; each ``every``-th is a target."""
    starts = np.cumsum([0, *lengths])
    tokens = np.arange(1, starts[-1] + 1, dtype=np.uint16)
    return TokenStore("train", tokens, starts, 0, digest, tokens % every == 0)


def stream(
    rank=0, world_size=1, *, tokens=None, batch=4, accumulation=1, seed=5, length=8, **settings
):
    return TrainStream(
        tokens or store(),
        sequence_tokens=length,
        batch_sequences=batch,
        accumulation=accumulation,
        seed=seed,
        rank=rank,
        world_size=world_size,
        **settings,
    )


def sequences(steps):
    """Rows of (inputs, labels, positions) of a list of steps, in order."""
    rows = []
    for micro_batches in steps:
        for batch in micro_batches:
            three = (batch.input_ids_BS, batch.labels_BS, batch.position_ids_BS)
            rows += torch.stack(three, dim=-1).tolist()
    return rows


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_worlds_read_the_same_sequences_in_the_same_order(world_size, accumulation):
    alone = sequences(
        [(s := stream(batch=8, accumulation=accumulation)).next_step()]
        + [s.next_step() for _ in range(6)]
    )
    ranks = [stream(r, world_size, batch=8, accumulation=accumulation) for r in range(world_size)]
    together = []
    for _ in range(7):
        steps = [rank.next_step() for rank in ranks]
        for micro in range(accumulation):
            together += sequences([[step[micro] for step in steps]])
    assert together == alone
    assert len(alone) == 56  # over two epochs of 21


def test_an_unequal_split_gives_each_rank_nearly_the_same():
    sizes = [
        [len(batch.input_ids_BS) for batch in stream(r, 3, batch=10, accumulation=2).next_step()]
        for r in range(3)
    ]
    assert sizes == [[1, 1], [2, 2], [2, 2]]


def test_an_epoch_takes_every_window_once_and_the_next_another_order():
    reader = stream(batch=3)
    assert reader.sequences_per_epoch == 21
    epochs = [sequences(reader.next_step() for _ in range(7)) for _ in range(3)]
    for rows in epochs:
        inputs = [token for row in rows for token, _, _ in row]
        assert len(set(inputs)) == len(inputs) == 168
    assert epochs[0] != epochs[1] != epochs[2]
    assert reader.epoch == 3


def test_a_batch_may_span_two_epochs():
    spanning, aligned = stream(batch=5), stream(batch=3)
    first = sequences(spanning.next_step() for _ in range(21))
    assert first == sequences(aligned.next_step() for _ in range(35))


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 13])
@pytest.mark.parametrize("world_size", [1, 3])
def test_resumes_at_the_exact_token_on_another_world_and_batch(taken, world_size):
    reader = stream(batch=4)
    for _ in range(taken):
        reader.next_step()
    state = reader.state_dict()
    assert (state["sequence"], state["epoch"]) == (4 * taken, 4 * taken // 21)
    expected = sequences(reader.next_step() for _ in range(6))
    resumed = [stream(r, world_size, batch=6, accumulation=2) for r in range(world_size)]
    rows = []
    for one in resumed:
        one.load_state_dict(state)
    for _ in range(4):
        steps = [one.next_step() for one in resumed]
        for micro in range(2):
            rows += sequences([[step[micro] for step in steps]])
    assert rows == expected


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"tokens": store(digest="b")}, "tokens"), ({"seed": 6}, "seed"), ({"length": 9}, "sequence")],
)
def test_a_place_in_other_data_is_refused(changed, named):
    state = stream().state_dict()
    with pytest.raises(CheckpointError, match=named):
        stream(**changed).load_state_dict(state)


def test_document_lengths_are_the_runs_of_the_flattened_rows():
    for _ in range(3):
        (batch,) = stream(batch=6).next_step()
        assert sum(batch.document_lengths) == 48
        begins = np.cumsum((0, *batch.document_lengths))[:-1].tolist()
        positions = batch.position_ids_BS.flatten().tolist()
        assert [place for place, position in enumerate(positions) if position == 0] == begins
        assert set(range(0, 48, 8)) <= set(begins)  # a row's end always ends a run


def test_micro_batches_are_int64_on_the_cpu():
    (batch,) = stream().next_step()
    for tensor in (batch.input_ids_BS, batch.labels_BS, batch.position_ids_BS):
        assert (tensor.dtype, tensor.device.type, tuple(tensor.shape)) == (
            torch.int64,
            "cpu",
            (4, 8),
        )


def test_batches_that_do_not_fit_are_refused_with_their_numbers():
    with pytest.raises(ConfigError, match="5 sequences in 2 micro-batches"):
        stream(batch=5, accumulation=2)
    with pytest.raises(ConfigError, match="2 sequences for 3 ranks"):
        stream(0, 3, batch=4, accumulation=2)
    with pytest.raises(DataError, match="169 tokens: 21 sequences"):
        stream(batch=22)


@pytest.mark.parametrize("batch", [3, 4, 7, 30])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_held_out_tokens_come_exactly_once_in_equal_numbers_of_batches(world_size, batch):
    tokens = store()
    per_rank = [
        list(
            held_out_batches(
                tokens, sequence_tokens=8, batch_sequences=batch, rank=r, world_size=world_size
            )
        )
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    for batches in per_rank:
        assert len({tuple(b.input_ids_BS.shape) for b in batches}) == 1
    every = [b for batches in per_rank for b in batches]
    inputs = torch.cat([b.input_ids_BS.flatten() for b in every])
    assert sorted(inputs[inputs > 0].tolist()) == list(range(1, 170))
    labels = torch.cat([b.labels_BS.flatten() for b in every])
    firsts = set((tokens.starts[:-1] + 1).tolist())
    assert sorted(labels[labels >= 0].tolist()) == [t for t in range(1, 170) if t not in firsts]
    assert set(labels[labels < 0].tolist()) == {-100}


def test_held_out_needs_a_sequence_for_each_rank():
    with pytest.raises(ConfigError, match="1 sequences for 2 ranks"):
        next(held_out_batches(store(), sequence_tokens=8, batch_sequences=1, rank=0, world_size=2))


# Rows of 12 hold the documents of 7, 2, 11, 1, 5 and 9 tokens whole: 35 tokens in 3 rows of 36.
WHOLE = {"length": 12, "too_long": "drop"}
FITTING = [n + 1 for n in range(169) if n < 7 or 37 <= n < 51 or 115 <= n < 129]


def test_whole_documents_come_once_an_epoch_in_rows_that_change_with_it():
    reader = stream(batch=3, **WHOLE)
    assert reader.sequences_per_epoch == 3
    assert (reader.fullness, stream().fullness) == (35 / 36, 1.0)
    epochs = [sequences([reader.next_step()]) for _ in range(6)]
    for rows in epochs:
        assert sorted(token for row in rows for token, _, _ in row if token) == FITTING
        for row in rows:
            labels = [0 if position == 0 else token for token, _, position in row]
            follow = [max(label, 0) for _, label, _ in row]
            assert follow[:-1] == labels[1:] and follow[-1] == 0
    assert len({str(rows) for rows in epochs}) > 1


@pytest.mark.parametrize("taken", [0, 2, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_whole_documents_resume_on_another_world(taken, world_size):
    tokens = store([3 + n % 7 for n in range(40)], every=2)
    settings = {"tokens": tokens, "length": 10, "too_long": "truncate", "batch": 6}
    reader = stream(**settings)
    for _ in range(taken):
        reader.next_step()
    state = reader.state_dict()
    expected = sequences(reader.next_step() for _ in range(9))
    resumed = [stream(r, world_size, **settings, accumulation=2) for r in range(world_size)]
    for one in resumed:
        one.load_state_dict(state)
    rows = []
    for _ in range(9):
        steps = [one.next_step() for one in resumed]
        for micro in range(2):
            rows += sequences([[step[micro] for step in steps]])
    assert rows == expected
    assert {label % 2 for row in rows for _, label, _ in row if label > 0} == {0}


def test_another_treatment_of_long_documents_is_refused():
    state = stream(batch=3, **WHOLE).state_dict()
    with pytest.raises(CheckpointError, match="too_long drop in the checkpoint, truncate here"):
        stream(batch=3, length=12, too_long="truncate").load_state_dict(state)


def test_held_out_documents_stay_whole_and_come_once():
    batches = [
        batch
        for rank in range(2)
        for batch in held_out_batches(
            store(every=3),
            sequence_tokens=12,
            batch_sequences=2,
            rank=rank,
            world_size=2,
            too_long="drop",
        )
    ]
    inputs = torch.cat([batch.input_ids_BS.flatten() for batch in batches])
    assert sorted(inputs[inputs > 0].tolist()) == FITTING
    labels = torch.cat([batch.labels_BS.flatten() for batch in batches])
    firsts = {1, 38, 40, 51, 116, 121}
    expected = [token for token in FITTING if token % 3 == 0 and token not in firsts]
    assert sorted(labels[labels > 0].tolist()) == expected


def test_a_split_of_which_nothing_fits_is_refused():
    assert (fit_rows(store(), 12, "drop").dropped, fit_rows(store(), 12, "split").dropped) == (4, 0)
    with pytest.raises(DataError, match="of the train split fits(.|\n)*2 of 8(.|\n)*truncate"):
        fit_rows(store([9, 8]), 7, "drop")

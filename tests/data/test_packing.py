"""Windows, labels and positions: by hand, and against a reference that goes token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hecate.data.packing import (
    IGNORED,
    Packing,
    document_order,
    fit_documents,
    share_of,
    window_order,
)

# Three documents, each ended by 0.
TOKENS = np.array([1, 2, 3, 0, 4, 0, 5, 6, 7, 8, 9, 0], dtype=np.uint16)
STARTS = np.array([0, 4, 6, 12])


def test_documents_in_their_own_order_fill_whole_windows():
    packing = Packing.of(STARTS, np.array([0, 1, 2]), 4)
    rows = packing.rows(TOKENS, np.arange(3), padding_id=99)
    assert rows.input_ids_BS.tolist() == [[1, 2, 3, 0], [4, 0, 5, 6], [7, 8, 9, 0]]
    assert rows.labels_BS.tolist() == [[2, 3, 0, -100], [0, -100, 6, 7], [8, 9, 0, -100]]
    assert rows.position_ids_BS.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3]]
    assert rows.document_lengths() == (4, 2, 2, 4)
    assert {array.dtype for array in vars(rows).values()} == {np.dtype(np.int64)}


def test_documents_in_another_order_with_a_window_past_the_end():
    packing = Packing.of(STARTS, np.array([2, 0, 1]), 5)
    assert (packing.num_tokens, packing.num_whole_windows, packing.num_windows) == (12, 2, 3)
    rows = packing.rows(TOKENS, np.array([2, 0, 1, 3]), padding_id=99)
    assert rows.input_ids_BS.tolist() == [
        [4, 0, 99, 99, 99],
        [5, 6, 7, 8, 9],
        [0, 1, 2, 3, 0],
        [99, 99, 99, 99, 99],
    ]
    assert rows.labels_BS.tolist() == [
        [0, -100, -100, -100, -100],
        [6, 7, 8, 9, 0],  # the last predicts the token that opens the next window
        [-100, 2, 3, 0, -100],
        [-100] * 5,
    ]
    assert rows.position_ids_BS.tolist() == [
        [0, 1, 0, 1, 2],
        [0, 1, 2, 3, 4],
        [0, 0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]
    assert rows.document_lengths() == (2, 3, 5, 1, 4, 5)


def test_whole_documents_share_rows_that_are_filled_up():
    starts = np.array([0, 2, 6, 9, 15])  # lengths 2, 4, 3, 6; the last is cut to a row of 5
    tokens = np.arange(1, 16, dtype=np.uint16)
    packing = Packing.whole(starts, np.arange(4), 5)
    assert (packing.num_tokens, packing.num_whole_windows, packing.num_windows) == (15, 3, 3)
    rows = packing.rows(tokens, np.array([0, 1, 2, 3]), padding_id=99)
    assert rows.input_ids_BS.tolist() == [
        [10, 11, 12, 13, 14],
        [3, 4, 5, 6, 99],
        [7, 8, 9, 1, 2],
        [99] * 5,
    ]
    assert rows.labels_BS.tolist() == [
        [11, 12, 13, 14, -100],  # what was cut off is not predicted either
        [4, 5, 6, -100, -100],
        [8, 9, -100, 2, -100],
        [-100] * 5,
    ]
    assert rows.position_ids_BS.tolist() == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 0],
        [0, 1, 2, 0, 1],
        [0, 1, 2, 3, 4],
    ]
    assert rows.document_lengths() == (5, 4, 1, 3, 2, 5)


def test_equally_long_documents_change_places_with_the_order():
    starts = np.array([0, 2, 4, 7, 10])
    tokens = np.arange(1, 11, dtype=np.uint16)

    def rows(*order):
        packing = Packing.whole(starts, np.array(order), 5)
        return packing.rows(tokens, np.arange(2), padding_id=0).input_ids_BS.tolist()

    assert rows(0, 1, 2, 3) == [[5, 6, 7, 3, 4], [8, 9, 10, 1, 2]]
    assert rows(1, 0, 2, 3) == [[5, 6, 7, 1, 2], [8, 9, 10, 3, 4]]
    assert rows(1, 3, 2, 0) == [[8, 9, 10, 1, 2], [5, 6, 7, 3, 4]]


def test_labels_are_targets_alone():
    targets = np.zeros(12, dtype=bool)
    targets[[2, 3, 4, 8]] = True  # 4 opens a document: nothing predicts it
    rows = Packing.of(STARTS, np.array([0, 1, 2]), 4).rows(TOKENS, np.arange(3), 99, targets)
    assert rows.labels_BS.tolist() == [
        [-100, 3, 0, -100],
        [-100, -100, -100, 7],  # the target that opens the next window
        [-100] * 4,
    ]
    nothing = Packing.of(STARTS, np.array([0, 1, 2]), 4).rows(TOKENS, np.arange(3), 99, np.False_)
    assert (nothing.labels_BS == IGNORED).all()


def test_what_is_too_long_is_split_dropped_or_cut():
    starts = np.array([0, 3, 8, 12, 18])  # lengths 3, 5, 4, 6
    targets = np.zeros(18, dtype=bool)
    targets[[1, 7, 9, 13]] = True  # of document 1 the last token alone, of document 3 the second

    def fit(too_long, targets=targets):
        found = fit_documents(starts, targets, 4, too_long)
        return found.documents.tolist(), found.dropped, found.truncated

    assert fit("split") == ([0, 1, 2, 3], 0, 0)
    assert fit("drop") == ([0, 2], 2, 0)
    assert fit("truncate") == ([0, 2, 3], 1, 1)
    assert fit("truncate", np.True_) == ([0, 1, 2, 3], 0, 2)


def by_token(documents, sequence_tokens, windows, padding_id):
    """The same rows, one token at a time: [(input, label, position)] for each window."""
    stream = [(d, i) for d, document in enumerate(documents) for i in range(len(document))]
    rows = []
    for window in windows:
        row, position = [], 0
        for place in range(window * sequence_tokens, (window + 1) * sequence_tokens):
            if place >= len(stream):
                begins = place == len(stream) or not row
                position = 0 if begins else position + 1
                row.append((padding_id, IGNORED, position))
                continue
            d, i = stream[place]
            position = 0 if i == 0 or not row else position + 1
            label = documents[d][i + 1] if i + 1 < len(documents[d]) else IGNORED
            row.append((documents[d][i], label, position))
        rows.append(row)
    return rows


@st.composite
def packings(draw):
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=12))
    order = draw(st.permutations(range(len(lengths))))
    return lengths, list(order), draw(st.integers(1, 10)), draw(st.integers(0, 3))


@given(packings())
@settings(max_examples=150)
def test_equals_the_reference_token_by_token(case):
    lengths, order, sequence_tokens, extra = case
    starts = np.cumsum([0, *lengths])
    tokens = np.arange(1, starts[-1] + 1, dtype=np.uint32)
    documents = [tokens[starts[d] : starts[d + 1]].tolist() for d in order]
    packing = Packing.of(starts, np.array(order), sequence_tokens)
    windows = np.arange(packing.num_windows + extra)
    rows = packing.rows(tokens, windows, padding_id=0)
    got = np.stack([rows.input_ids_BS, rows.labels_BS, rows.position_ids_BS], axis=-1)
    assert got.tolist() == [
        [list(token) for token in row]
        for row in by_token(documents, sequence_tokens, windows.tolist(), 0)
    ]


@given(packings())
@settings(max_examples=60)
def test_every_token_is_input_once_and_all_but_first_ones_are_predicted_once(case):
    lengths, order, sequence_tokens, _ = case
    starts = np.cumsum([0, *lengths])
    tokens = np.arange(1, starts[-1] + 1, dtype=np.uint32)
    packing = Packing.of(starts, np.array(order), sequence_tokens)
    rows = packing.rows(tokens, np.arange(packing.num_windows), padding_id=0)
    inputs = rows.input_ids_BS[rows.input_ids_BS > 0]
    assert sorted(inputs.tolist()) == tokens.tolist()
    predicted = rows.labels_BS[rows.labels_BS != IGNORED]
    firsts = set(tokens[starts[:-1]].tolist())
    assert sorted(predicted.tolist()) == [t for t in tokens.tolist() if t not in firsts]
    assert sum(rows.document_lengths()) == rows.input_ids_BS.size


@given(packings())
@settings(max_examples=100)
def test_every_whole_document_stands_in_one_row_and_is_predicted_but_for_its_first_token(case):
    lengths, order, more, _ = case
    sequence_tokens = max(lengths) + more - 1
    starts = np.cumsum([0, *lengths])
    tokens = np.arange(1, starts[-1] + 1, dtype=np.uint32)
    packing = Packing.whole(starts, np.array(order), sequence_tokens)
    rows = packing.rows(tokens, np.arange(packing.num_windows), padding_id=0)
    found = []
    begins = np.cumsum([0, *rows.document_lengths()])
    for begin, end in zip(begins[:-1], begins[1:], strict=True):
        ids = rows.input_ids_BS.reshape(-1)[begin:end].tolist()
        labels = rows.labels_BS.reshape(-1)[begin:end].tolist()
        assert begin // sequence_tokens == (end - 1) // sequence_tokens
        assert rows.position_ids_BS.reshape(-1)[begin:end].tolist() == list(range(end - begin))
        if ids[0]:
            assert labels == [*ids[1:], IGNORED]
            found.append(ids)
        else:
            assert set(ids) == {0} and set(labels) == {IGNORED}
    parts = zip(starts[:-1], starts[1:], strict=True)
    assert sorted(found) == [tokens[a:b].tolist() for a, b in parts]
    assert packing.num_whole_windows == packing.num_windows
    again = Packing.whole(starts, np.arange(len(lengths)), sequence_tokens)
    assert again.num_windows == packing.num_windows


@pytest.mark.parametrize("order", [document_order, window_order])
def test_orders_are_permutations_that_differ_by_seed_and_epoch(order):
    orders = [tuple(order(50, seed=s, epoch=e).tolist()) for s in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(one) == list(range(50)) for one in orders)


def test_orders_never_change_between_releases():
    assert document_order(8, seed=3, epoch=1).tolist() == [0, 6, 2, 1, 3, 7, 4, 5]
    assert window_order(8, seed=3, epoch=1).tolist() == [3, 6, 2, 5, 7, 0, 1, 4]


@given(st.integers(1, 40), st.integers(1, 8))
def test_shares_are_contiguous_whole_and_even(sequences, world_size):
    shares = [share_of(sequences, rank, world_size) for rank in range(world_size)]
    assert [s for share in shares for s in share] == list(range(sequences))
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1

"""Ratios within rounds, loss curves, and the worst case in the summary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hecate.bench.compare import Measured, loss_difference, row_of, summarise
from hecate.bench.turns import Turn

OUR_SECONDS = (1.0, 2.0, 4.0)


def measured(contender: str, seconds: tuple[float, ...], **changes: object) -> Measured:
    """Turns of two steps with those durations, beside OUR_SECONDS; 100 tokens a step."""
    plain = Measured(
        workload="toy",
        layout="1p",
        contender=contender,
        title=contender.upper(),
        tokens_per_step=100,
        warm_up=Turn(9.0, (4.0,), 10 << 20),
        turns=tuple(Turn(s, (3.0, 2.0), 20 << 20) for s in seconds),
        ours=tuple(Turn(s, (3.0, 2.0), 20 << 20) for s in OUR_SECONDS),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


OURS = measured("ours", OUR_SECONDS)


def test_ratios_are_taken_within_a_round() -> None:
    slower = measured("peer", (2.0, 2.0, 12.0))
    assert OURS.rates == (200.0, 100.0, 50.0)
    assert slower.ratios == (2.0, 1.0, 3.0)
    row = row_of(OURS, slower, tolerance=1e-3)
    assert row["ours_over_it"] == 2.0
    assert row["ours_over_it_range"] == "1.00 - 3.00"
    assert row["tokens_per_s"] == 100.0
    assert row["peak_mib"] == 20


def test_curves_are_compared_from_the_first_step_on() -> None:
    other = measured("peer", (1.0, 1.0, 1.0), warm_up=Turn(1.0, (4.004,), 0))
    assert loss_difference(OURS, other) == pytest.approx(0.001, rel=0.01)
    assert row_of(OURS, other, tolerance=1e-2)["same_curve"] is True
    assert row_of(OURS, other, tolerance=1e-4)["same_curve"] is False
    assert OURS.losses == (4.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0)


def test_a_contender_without_figures_has_a_row_that_says_why() -> None:
    absent = Measured("toy", "1p", "peer", "PEER", 100, problem="not installed")
    row = row_of(OURS, absent, tolerance=1e-3)
    assert row["status"] == "not installed"
    assert "tokens_per_s" not in row


def test_our_own_row_has_no_ratio() -> None:
    row = row_of(OURS, OURS, tolerance=1e-3)
    assert row["status"] == "ok"
    assert "ours_over_it" not in row


def test_the_summary_takes_the_worst_model_and_the_best_peer() -> None:
    first = [OURS, measured("fast", (2.0, 4.0, 8.0)), measured("slow", (3.0, 6.0, 12.0))]
    second = [
        replace(OURS, workload="large"),
        measured("fast", (1.5, 3.0, 6.0), workload="large"),
        measured("slow", (9.0, 9.0, 9.0), workload="large", problem="failed: died"),
    ]
    other_layout = [replace(m, layout="2p") for m in first]
    summary = summarise([first, second, other_layout], "ours")
    assert summary["toy_1p_vs_fast"] == 2.0
    assert summary["toy_1p_vs_slow"] == 3.0
    assert summary["toy_1p_vs_best_peer"] == 2.0
    assert summary["large_1p_vs_best_peer"] == 1.5
    assert "large_1p_vs_slow" not in summary
    assert summary["vs_best_peer_1p"] == 1.5
    assert summary["vs_best_peer_2p"] == 2.0
    assert summary["toy_1p_tokens_per_s"] == 100.0


def test_without_peers_there_is_nothing_to_compare() -> None:
    summary = summarise([[OURS]], "ours")
    assert summary == {"toy_1p_tokens_per_s": 100.0}

"""Differences, tolerances, rows and summary from losses by hand."""

from __future__ import annotations

import pytest

from hecate.bench.divergence import (
    Allowance,
    Comparison,
    Curve,
    at_marks,
    differences,
    largest_so_far,
    rows_of,
    same_bits,
    share_of_tolerance,
    summarise,
    tolerances,
)


def curve(*losses: float, norms: tuple[float, ...] = ()) -> Curve:
    steps = len(losses)
    return Curve(losses, norms or (1.0,) * steps, (2,) * steps, (0, 3) * steps, (1.5,) * steps)


def test_differences_are_relative_to_the_reference_over_common_steps():
    assert differences([4.5, 2.0, 7.0], [4.0, 2.5]) == (0.125, 0.2)
    assert differences([4.0], [4.0]) == (0.0,)


def test_the_largest_so_far_never_falls():
    assert largest_so_far([1.0, 3.0, 2.0]) == (1.0, 3.0, 3.0)
    assert at_marks([1.0, 3.0, 2.0], marks=(1, 2, 3, 4)) == {1: 1.0, 2: 3.0, 3: 3.0}


def test_what_is_allowed_follows_the_worst_control_and_never_falls_below_the_floor():
    controls = [[0.0, 1e-3, 0.0], [1e-6, 0.0, 3e-3]]
    at_once = Allowance(factor=2.0, lag=0, floor=1e-5)
    assert tolerances(controls, at_once) == (1e-5, 2e-3, 6e-3)
    # once a control was far off, the next steps may be too
    assert tolerances([[2e-3, 0.0]], at_once) == (4e-3, 4e-3)
    # what a control has a step later, a curve may have now
    assert tolerances(controls, Allowance(2.0, 1, 1e-5)) == (2e-3, 6e-3, 6e-3)
    assert tolerances(controls, Allowance(2.0, 9, 1e-5)) == (6e-3, 6e-3, 6e-3)


def test_an_early_difference_counts_by_what_its_own_step_allows():
    assert share_of_tolerance([0.2, 0.2], [0.1, 1.0]) == 2.0
    assert share_of_tolerance([], [0.1]) == 0.0


def test_bits_are_compared_over_common_steps_and_in_norms_too():
    assert same_bits(curve(3.0, 2.0), curve(3.0))
    assert not same_bits(curve(3.0, 2.0), curve(3.0, 2.0000000000000004))
    assert not same_bits(curve(3.0), curve(3.0, norms=(1.5,)))


def compared(dtype: str, **repeats: Curve) -> Comparison:
    return Comparison(
        name="text",
        dtype=dtype,
        allowance=Allowance(factor=4.0, lag=0, floor=0.01),
        reference=curve(4.0, 2.0),
        controls={"back": curve(4.0, 2.25, 2.0)},  # 0, 1/8: allows the floor, then 1/2
        curves={"near": curve(4.0, 2.5), "far": curve(4.5, 2.0)},
        repeats=repeats,
    )


def test_rows_say_how_far_each_curve_is_and_what_it_did():
    control, near, far = rows_of(compared("float32", near=curve(4.0)))
    assert (control["kind"], control["worst_difference"]) == ("control", 0.125)
    assert "share_of_tolerance" not in control
    assert (near["worst_difference"], near["difference_1"]) == (0.25, 0.0)
    assert near["share_of_tolerance"] == 0.5
    assert far["share_of_tolerance"] == pytest.approx(12.5)  # 1/8 where 0.01 is allowed
    assert (near["copies_per_step"], near["moves"], near["imbalance"]) == (2.0, 6, 1.5)
    assert (near["repeated_steps"], near["repeats_to_the_bit"]) == (1, True)
    assert "repeats_to_the_bit" not in far


def test_the_summary_is_the_worst_of_all_and_fp64_stands_apart():
    assert summarise([compared("float32", near=curve(4.0)), compared("float64")]) == {
        "worst_difference": 0.25,
        "tolerance": 0.5,
        "share_of_tolerance": pytest.approx(12.5),
        "worst_difference_fp64": 0.25,
        "tolerance_fp64": 0.5,
        "share_of_tolerance_fp64": pytest.approx(12.5),
        "bit_identical_repeats": 1.0,
    }


def test_one_repeat_that_differs_or_none_at_all_is_no_repeat():
    different = compared("bfloat16", near=curve(4.0), far=curve(4.25))
    assert summarise([different])["bit_identical_repeats"] == 0.0
    assert summarise([compared("bfloat16")])["bit_identical_repeats"] == 0.0

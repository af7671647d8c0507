"""Charts and their sections, by hand."""

from hecate.logging.sections import charts_of


def test_curves_are_grouped_and_layers_become_maps() -> None:
    charts = charts_of(
        {
            "loss": 2.0,
            "tokens_per_s": 100.0,
            "experts/mfu": 0.5,
            "eval/loss": 3.0,
            "load/moved_experts": 4.0,
            "load/ranks_max_over_mean": [1.0, 2.0],
            "gather/exposed_s": [],
            "load/tokens_per_expert": [[1, 2, 3], [4, 5, 6]],
        }
    )
    assert charts.curves == {
        "train/loss": 2.0,
        "speed/tokens_per_s": 100.0,
        "speed/experts_mfu": 0.5,
        "eval/loss": 3.0,
        "placement/moved_experts": 4.0,
        "load/ranks_max_over_mean/mean": 1.5,
        "load/ranks_max_over_mean/max": 2.0,
    }
    assert charts.maps == {
        "load/ranks_max_over_mean/by_layer": [1.0, 2.0],
        "experts/tokens_per_expert/layer_0": [1, 2, 3],
        "experts/tokens_per_expert/layer_1": [4, 5, 6],
    }


def test_phases_are_shares_as_well() -> None:
    charts = charts_of({"seconds/forward": 1.0, "seconds/backward": 3.0})
    assert charts.curves == {
        "seconds/forward": 1.0,
        "seconds/backward": 3.0,
        "share of time/forward": 0.25,
        "share of time/backward": 0.75,
    }


def test_layers_sort_by_their_numbers() -> None:
    maps = charts_of({"load/tokens_per_expert": [[1]] * 11}).maps
    assert [name[-8:] for name in maps][:2] == ["layer_00", "layer_01"]


def test_many_experts_of_many_layers_are_added_up() -> None:
    maps = charts_of({"load/tokens_per_expert": [[1] * 256] * 61}).maps
    assert len(maps) == 61
    assert maps["experts/tokens_per_expert/layer_60"] == [4] * 64
    (row,) = charts_of({"load/tokens_per_expert": [[1] * 256]}).maps.values()
    assert row == [1] * 256

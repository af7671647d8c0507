"""TensorBoard's files, read back by TensorBoard."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hecate.logging.protocol import Run
from hecate.logging.tensorboard import TensorBoardSink


def run(folder: Path, resumed_step: int = 0) -> Run:
    settings = {"train": {"steps": 40}}
    return Run(folder, "toy", 40, resumed_step, settings=settings, environment={"torch": "9.9"})


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0}).Reload()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars("train/loss")]


def test_what_is_logged_is_read_back(tmp_path: Path) -> None:
    sink = TensorBoardSink(run(tmp_path))
    sink.log(10, {"loss": 2.5, "load/tokens_per_expert": [[4, 0, 2], [1, 1, 1]]})
    assert losses(tmp_path) == [(10, 2.5)], "while the run goes on"
    sink.log(20, {"loss": 2.0, "load/computed_max_over_mean": [1.0, 1.5]})
    sink.close()
    sink.close()
    events = read(tmp_path)
    assert losses(tmp_path) == [(10, 2.5), (20, 2.0)]
    (loads,) = events.Histograms("experts/tokens_per_expert/layer_0")
    assert loads.step == 10
    assert loads.histogram_value.bucket_limit == [1, 2, 3]
    assert loads.histogram_value.bucket == [4, 0, 2]
    (worst,) = events.Scalars("load/computed_max_over_mean/max")
    assert (worst.step, worst.value) == (20, 1.5)
    for name, expected in (("configuration", '"steps": 40'), ("environment", '"torch": "9.9"')):
        (text,) = events.Tensors(f"{name}/text_summary")
        assert expected in text.tensor_proto.string_val[0].decode()


def test_a_resumed_run_repeats_no_step(tmp_path: Path) -> None:
    first = TensorBoardSink(run(tmp_path), clock=iter(range(100, 200)).__next__)
    for step in (10, 20, 30):
        first.log(step, {"loss": float(step)})
    first.close()
    again = TensorBoardSink(run(tmp_path, resumed_step=20), clock=iter(range(300, 400)).__next__)
    again.log(30, {"loss": 3.0})
    again.close()
    assert losses(tmp_path) == [(10, 10.0), (20, 20.0), (30, 3.0)]


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        sink = TensorBoardSink(run(tmp_path))
        sink.log(1, {"loss": loss})
        sink.close()
    assert losses(tmp_path) == [(1, 2.0)]


def test_a_folder_that_cannot_be_written_is_an_error_of_log(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    sink = TensorBoardSink(run(tmp_path))
    with pytest.raises(OSError):
        sink.log(1, {"loss": 1.0})
    sink.close()

"""Weights & Biases without an account: real runs, offline, in the run folder."""

import json
import logging
import subprocess
import sys

import pytest
from disks import small_disk
from wandb_files import history, records

from hecate.errors import StorageError
from hecate.logging import LoggingConfig, open_sinks
from hecate.logging.protocol import Run
from hecate.logging.wandb import WandbSink, has_credentials


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    # Whoever asks a question gets an error instead of an answer.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("wandb asked a question"))


def _run(folder, resumed_step=0):
    return Run(
        folder,
        "toy",
        40,
        resumed_step,
        settings={"train": {"steps": 40}},
        environment={"torch": "9.9", "commit": "abc"},
    )


def _said(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("hecate.")]


def _files(folder):
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def test_an_offline_run_lies_in_the_run_folder_and_resumes_with_its_id(tmp_path):
    folder = tmp_path / "run"
    sink = WandbSink(_run(folder), mode="offline", project="p")
    sink.log(10, {"loss": 2.5, "load/dead": [1, 0], "load/tokens_per_expert": [[4, 0, 2], [1, 1]]})
    sink.log(20, {"loss": 2.0})
    sink.close()
    sink.close()
    (path,) = _files(folder)
    run_id = (folder / "wandb" / "run-id").read_text().strip()
    assert path.name == f"run-{run_id}.wandb"
    first, second = history(path)
    assert first["step"] == 10 and first["train/loss"] == 2.5
    assert first["load/dead/mean"] == 0.5 and first["load/dead/max"] == 1
    assert first["load/dead/by_layer.values"] == [1, 0]
    assert first["experts/tokens_per_expert/layer_0.values"] == [4, 0, 2]
    assert first["experts/tokens_per_expert/layer_0.bins"] == [0, 1, 2, 3]
    assert second["step"] == 20
    (record,) = (r.run for r in records(path) if r.HasField("run"))
    assert (record.display_name, record.project, record.run_id) == ("toy", "p", run_id)
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert config["train"] == {"steps": 40}
    assert config["environment"] == {"torch": "9.9", "commit": "abc"}
    listed = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", str(path.parent)],
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0 and path.parent.name in listed.stdout + listed.stderr

    again = WandbSink(_run(folder, resumed_step=10), mode="offline", project="p")
    again.log(20, {"loss": 1.75})
    again.close()
    assert (folder / "wandb" / "run-id").read_text().strip() == run_id
    assert {path.name for path in _files(folder)} == {f"run-{run_id}.wandb"}
    assert [row["train/loss"] for path in _files(folder) for row in history(path)][-1] == 1.75


def test_a_new_run_in_an_old_folder_gets_a_new_id(tmp_path):
    ids = []
    for _ in range(2):
        WandbSink(_run(tmp_path), mode="offline", project="p").close()
        ids.append((tmp_path / "wandb" / "run-id").read_text())
    assert ids[0] != ids[1]


def test_more_experts_than_a_histogram_holds_are_pooled(tmp_path):
    sink = WandbSink(_run(tmp_path), mode="offline", project="p")
    sink.log(1, {"load/tokens_per_expert": [[1] * 1025]})
    sink.close()
    ((row,),) = (history(path) for path in _files(tmp_path))
    heights = row["experts/tokens_per_expert/layer_0.values"]
    edges = row["experts/tokens_per_expert/layer_0.bins"]
    assert sum(heights) == 1025 and len(heights) <= 512
    assert len(edges) == len(heights) + 1 and edges[-1] == 1025


def test_online_without_an_account_stays_offline_and_says_so_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        sink = WandbSink(_run(tmp_path), mode="online", project="p")
    sink.log(1, {"loss": 1.0})
    sink.close()
    (message,) = _said(caplog)
    assert "no W&B credentials" in message and "wandb login" in message
    assert len(_files(tmp_path)) == 1


def test_a_server_that_does_not_answer_leaves_the_run_offline(tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    try:
        with caplog.at_level(logging.WARNING):
            sink = WandbSink(_run(tmp_path), mode="online", project="p", init_timeout_s=1)
        sink.log(1, {"loss": 1.0})
        sink.close()
    finally:
        monkeypatch.undo()
        wandb.teardown()
    (message,) = _said(caplog)
    assert "did not answer" in message and "\n" not in message
    assert [row["train/loss"] for path in _files(tmp_path) for row in history(path)] == [1.0]


def test_credentials_are_found_where_wandb_login_puts_them(tmp_path, monkeypatch):
    assert not has_credentials("https://api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password abc\n")
    assert has_credentials("https://api.wandb.ai")
    assert not has_credentials("https://wandb.example.org")
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert has_credentials("https://wandb.example.org")


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "run").write_text("a file where the run folder should be")
    with pytest.raises(StorageError, match="cannot be kept in"):
        WandbSink(_run(tmp_path / "run"), mode="offline", project="p")


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path, caplog):
    with small_disk(tmp_path / "disk", pages=128) as disk, caplog.at_level(logging.WARNING):
        config = LoggingConfig(sinks=("wandb",))
        (sink,) = open_sinks(config, _run(disk.folder / "run"), rank=0)
        sink.log(1, {"loss": 1.0})
        assert not _said(caplog)
        disk.fill()
        for step in range(2, 5):
            sink.log(step, {"loss": 1.0})
        sink.close()
    (message,) = _said(caplog)
    assert "No space left on device" in message and "wandb may lack steps" in message

"""A second place for checkpoints: a folder, fsspec's memory, and S3 by way of moto's server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from hecate.checkpoint.folder import saved_steps
from hecate.checkpoint.integrity import FileRecord, PartRecord, read_record, write_record
from hecate.checkpoint.mirror import Mirror
from hecate.checkpoint.store import CheckpointConfig
from hecate.errors import ConfigError, StorageError


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        S3FileSystem().mkdir("bucket")
        yield "s3://bucket/some/prefix"
    server.stop()


@pytest.fixture(params=["path", "memory", "s3"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Mirror:
    address = {
        "path": lambda: str(tmp_path / "far"),
        "memory": lambda: f"memory://{uuid.uuid4().hex}",
        "s3": lambda: f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}",
    }[request.param]()
    return Mirror(address, "run")


def save(run: Path, step: int, text: str = "weights") -> Path:
    """A checkpoint of one file and its record."""
    path = run / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_text(text)
    (path / ".metadata").write_text("")
    records = {
        "__0_0.distcp": FileRecord((PartRecord("", (), len(text), 0),)),
        ".metadata": FileRecord(()),
    }
    write_record(path, step, "{}", records)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_comes_back_is_what_was_copied(mirror: Mirror, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for step in (10, 20):
        mirror.put(run, save(run, step), step)
    (run / "starts.jsonl").write_text("{}\n")
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "tokenizer.json").write_text("[]")
    mirror.put(run, save(run, 30, "newest"), 30)
    assert mirror.steps() == [10, 20, 30]
    assert mirror.fetch(other, later_than=30) is None and not other.exists()
    fetched = mirror.fetch(other, later_than=20)
    assert fetched == other / "checkpoints" / "step-00000030"
    whole = contents(run)
    expected = {name: data for name, data in whole.items() if "step-000000" not in name}
    expected |= {name: data for name, data in whole.items() if "step-00000030" in name}
    assert contents(other) == expected and read_record(fetched).step == 30
    mirror.keep_newest(1)
    assert mirror.steps() == [30]


def test_half_a_copy_is_never_taken_for_a_whole_one(mirror: Mirror, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mirror.put(run, save(run, 10), 10)
    half, damaged = save(run, 20), save(run, 30)
    (half / "meta.json").unlink()  # as if the process had died before that was copied
    (damaged / "meta.json").write_text('{"format": 1, "step":')
    mirror.put(run, damaged, 30)
    with pytest.raises(StorageError, match="copying a checkpoint"):
        mirror.put(run, half, 20)
    assert mirror.steps() == [10, 30]
    fetched = mirror.fetch(tmp_path / "other", later_than=-1)
    assert fetched is not None and fetched.name == "step-00000010"
    assert list(saved_steps(tmp_path / "other" / "checkpoints")) == [10]


def test_a_copy_made_again_is_the_new_one_alone(mirror: Mirror, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    first = save(run, 10)
    (first / "__1_0.distcp").write_text("of a second rank")
    mirror.put(run, first, 10)
    mirror.put(again, save(again, 10, "of one rank"), 10)
    fetched = mirror.fetch(tmp_path / "other", later_than=-1)
    assert fetched is not None
    assert contents(fetched) == contents(again / "checkpoints" / "step-00000010")


def test_storage_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "far").write_text("no folder")
    mirror = Mirror(str(tmp_path / "far"), "run")
    with pytest.raises(StorageError, match=r"copying a checkpoint at .*far/run failed"):
        mirror.put(tmp_path / "run", save(tmp_path / "run", 10), 10)


def test_a_bucket_that_is_not_there_is_named(s3: str, tmp_path: Path) -> None:
    mirror = Mirror("s3://no-such-bucket/x", "run")
    with pytest.raises(StorageError) as caught:
        mirror.put(tmp_path / "run", save(tmp_path / "run", 10), 10)
    assert "no-such-bucket" in str(caught.value) and "nothing" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "said"), [("gs://bucket", "hecate[gs]"), ("nowhere://x", "no address")]
)
def test_what_cannot_be_written_to_is_refused_by_name(address: str, said: str) -> None:
    if address.startswith("gs"):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("gcsfs is installed")
    with pytest.raises(ConfigError) as caught:
        Mirror(address, "run")
    assert said in str(caught.value) and address in str(caught.value)


def test_an_address_holds_no_credentials() -> None:
    with pytest.raises(ValidationError, match="no place for credentials"):
        CheckpointConfig(mirror="sftp://me:secret@host/x")
    assert CheckpointConfig(mirror="s3://bucket/a@b").mirror == "s3://bucket/a@b"

"""Where caches lie, by setting and by platform."""

from pathlib import Path

from hecate.folders import cache_folder


def test_the_cache_lies_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("") == tmp_path / "hecate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("") == tmp_path / ".cache" / "hecate"
    assert cache_folder("~/here") == Path(tmp_path, "here")

"""The facts of a machine and of a checkout."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from hecate.bench.machine import machine_facts, processor, source_commit


def test_the_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Quick CPU @ 3 GHz\nmodel name\t: other\n")
    assert processor(cpuinfo) == "Quick CPU @ 3 GHz"
    assert processor(tmp_path / "absent")


def test_facts_are_json_and_name_torch() -> None:
    facts = json.loads(json.dumps(machine_facts()))
    assert facts["cores"] >= 1
    assert facts["packages"]["torch"]


def test_a_commit_is_marked_when_files_differ(tmp_path: Path) -> None:
    assert source_commit(tmp_path) == ""

    def git(*words: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(("git", "-C", str(tmp_path), *who, *words), check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    clean = source_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert source_commit(tmp_path) == clean + "+"

"""A node of Ray that is late gets a second chance; what else is wrong is said at once."""

from __future__ import annotations

import pytest

ray = pytest.importorskip("ray")

from hecate.ray_start import start_ray  # noqa: E402

LATE = "The current node timed out during startup. This could happen because ..."


@pytest.mark.parametrize(
    ("raised", "tries", "said"),
    [
        ([Exception(LATE)], 2, None),
        ([Exception(LATE), Exception(LATE)], 2, "timed out during startup"),
        ([Exception("something else")], 1, "something else"),
        ([ConnectionError("no cluster at a:1")], 1, "no cluster"),
    ],
)
def test_a_late_node_is_started_once_more(
    raised: list[Exception], tries: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def init(**settings: object) -> None:
        asked.append(settings)
        if len(asked) <= len(raised):
            raise raised[len(asked) - 1]

    monkeypatch.setattr(ray, "init", init)
    if said is None:
        start_ray(num_cpus=1)
    else:
        with pytest.raises((RuntimeError, ConnectionError), match=said):
            start_ray(num_cpus=1)
    assert asked == [{"num_cpus": 1}] * tries

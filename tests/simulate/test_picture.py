"""The picture of simulated scaling: every point is there, and says that it is simulated."""

from __future__ import annotations

from xml.etree import ElementTree

from hecate.simulate.files import load_cluster, load_workload
from hecate.simulate.picture import draw_scaling
from hecate.simulate.run import Sampling
from hecate.simulate.strategies import STRATEGIES
from hecate.simulate.sweep import sweep

SVG = "{http://www.w3.org/2000/svg}"


def test_every_row_is_a_point_and_what_does_not_fit_is_hollow() -> None:
    cluster = load_cluster("paper-a")
    device = cluster.device.model_copy(update={"memory_bytes": 1e9})
    small = cluster.model_copy(update={"device": device})
    workload = load_workload("bert-moe", ["layers=2"])
    strategies = [STRATEGIES[name] for name in ("expert_parallel", "fsdp")]
    sampling = Sampling(steps=8, timed=(7,), layers=1)
    for described, hollow in ((cluster, False), (small, True)):
        rows = sweep(described, workload, [8, 16], strategies, sampling)
        assert all(row.fits is not hollow for row in rows)
        root = ElementTree.fromstring(draw_scaling("paper-a", rows))
        points = [
            shape for shape in root.iter(f"{SVG}rect") if shape.find(f"{SVG}title") is not None
        ]
        assert len(points) == len(rows)
        assert all((point.get("fill") == "white") is hollow for point in points)
        titles = [point.findtext(f"{SVG}title") or "" for point in points]
        assert all(title.startswith("simulated: bert-moe, ") for title in titles)
        assert any("fsdp, 16 devices" in title for title in titles)
        texts = [text.text for text in root.iter(f"{SVG}text")]
        assert "Simulated: paper-a" in texts and "16" in texts
        assert len(list(root.iter(f"{SVG}polyline"))) == 5 + len(strategies)


def test_one_number_of_devices_is_drawn_too() -> None:
    sampling = Sampling(steps=8, timed=(7,), layers=1)
    workload = load_workload("bert-moe", ["layers=1"])
    rows = sweep(load_cluster("paper-b"), workload, [8], [STRATEGIES["fssdp"]], sampling)
    ElementTree.fromstring(draw_scaling("paper-b", rows))

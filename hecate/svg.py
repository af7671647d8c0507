"""Pictures as SVG text: shapes in pixels, escaped labels, colours of a scale. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

FONT = "font-family:Helvetica,Arial,sans-serif"

Colour = tuple[int, int, int]


class Svg:
    """A picture of ``width`` x ``height`` pixels, white, to which shapes are added in order."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._shapes: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str,
        stroke: str = "none",
        title: str = "",
    ) -> None:
        """A filled rectangle; ``title`` is what a browser shows under the pointer."""
        inner = f"<title>{escape(title)}</title>" if title else ""
        self._shapes.append(
            f'<rect x="{x:.6g}" y="{y:.6g}" width="{width:.6g}" height="{height:.6g}" '
            f'fill="{escape(fill)}" stroke="{escape(stroke)}">{inner}</rect>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], *, stroke: str, width: float = 1.0
    ) -> None:
        """A line through ``points``."""
        path = " ".join(f"{x:.6g},{y:.6g}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{escape(stroke)}" '
            f'stroke-width="{width:.6g}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 11,
        anchor: str = "start",
        fill: str = "#222",
        weight: str = "normal",
    ) -> None:
        """``text`` on the base line ``y``; ``x`` is its ``anchor``: start, middle or end."""
        self._shapes.append(
            f'<text x="{x:.6g}" y="{y:.6g}" font-size="{size:.6g}" text-anchor="{anchor}" '
            f'fill="{escape(fill)}" font-weight="{weight}">{escape(text)}</text>'
        )

    def render(self) -> str:
        """The whole document."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.6g}" '
            f'height="{self.height:.6g}" viewBox="0 0 {self.width:.6g} {self.height:.6g}" '
            f'style="{FONT}">'
        )
        background = f'<rect width="{self.width:.6g}" height="{self.height:.6g}" fill="white"/>'
        return "\n".join([head, background, *self._shapes, "</svg>", ""])


def shade(share: float, scale: Sequence[Colour]) -> str:
    """The colour at ``share`` (0 to 1, clamped) of the way along ``scale``, as ``#rrggbb``."""
    place = min(1.0, max(0.0, share)) * (len(scale) - 1)
    low = min(int(place), len(scale) - 2)
    part = place - low
    mixed = (round(a + (b - a) * part) for a, b in zip(scale[low], scale[low + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)

"""What a report holds -> one HTML page that needs nothing else.

Figures, notes, events, the table of phases and the settings are plain HTML. Curves and maps are
drawn by the scripts in ``page/`` from JSON in the page, anew for every width. A content security
policy lets these scripts and this style in by their hashes and nothing besides: no other script,
no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources

from hecate.report.curves import Chart
from hecate.report.events import Event, counted, duration
from hecate.report.facts import Figure, RunFolder, moment
from hecate.report.maps import LOWEST, OCTAVES, ExpertMaps, LayerMaps
from hecate.report.profile import Profile
from hecate.report.spent import PhaseAreas, Spent

STYLE = "page.css"
SCRIPTS = ("words.js", "axes.js", "curves.js", "areas.js", "maps.js", "page.js")

CURVES = (
    ("Training", ("loss", "speed", "mfu", "experts", "grad", "rate", "auxiliary", "skipped")),
    ("Plan changes", ("moved", "copies", "bytes", "missed", "waits")),
    ("Memory", ("memory",)),
)
TOGETHER = 8  # up to this many layers' experts are shown at once; maps.js has it too
WIDE = frozenset({"loss", "memory"})
KINDS = {
    "start": "begun",
    "resume": "resumed",
    "pause": "pause",
    "back": "repeated",
    "spike": "jump",
    "lost": "not finite",
    "moved": "re-shard",
}


@dataclass(frozen=True)
class Page:
    """Everything that the page shows."""

    run: RunFolder
    headline: str
    figures: list[Figure]
    missing: list[str]
    drawn: list[str]
    charts: list[Chart]
    layers: LayerMaps
    experts: ExpertMaps | None
    spent: Spent
    areas: PhaseAreas
    profile: Profile | None
    events: list[Event]

    @property
    def chosen_layers(self) -> bool:
        """Whether experts are shown one layer at a time."""
        return self.experts is not None and len(self.experts.num_experts) > TOGETHER


def render(page: Page) -> str:
    """The whole document."""
    style, script = _asset(STYLE), _script()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}"
    )
    sections = [section for section in _sections(page) if section]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(page.run.name)}: training report</title>",
            f"<style>{style}</style>",
            *_head(page),
            "<main>",
            *sections,
            "</main>",
            *_foot(page),
            f'<script type="application/json" id="data">{_data(page)}</script>',
            f"<script>{script}</script>",
            "</html>",
            "",
        ]
    )


def embedded(value: object) -> str:
    """``value`` as JSON that no parser of HTML takes for anything else."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _data(page: Page) -> str:
    ends = [page.layers.edges, page.experts.edges if page.experts else []]
    first = min((edges[0] for edges in ends if len(edges) > 1), default=0)
    marks = [
        {"step": event.step, "kind": event.kind, "text": event.text}
        for event in page.events
        if event.kind in ("resume", "spike", "lost", "pause")
    ]
    experts = asdict(page.experts) if page.experts else None
    return embedded(
        {
            "steps": [first, max(page.run.done_steps, first + 1)],
            "marks": marks,
            "charts": {chart.key: asdict(chart) for chart in page.charts},
            "layers": asdict(page.layers),
            "experts": experts,
            "codes": {"lowest": LOWEST, "octaves": OCTAVES},
            "areas": asdict(page.areas),
        }
    )


def _sections(page: Page) -> list[str]:
    by_key = {chart.key: chart for chart in page.charts}
    shown = {title: [key for key in keys if key in by_key] for title, keys in CURVES}
    others = [key for key in by_key if key.startswith("other-")]
    return [
        _curves("Training", shown["Training"], by_key),
        _time(page),
        _experts(page),
        _curves("Plan changes", shown["Plan changes"], by_key),
        _curves("Memory", shown["Memory"], by_key),
        _curves("Also logged", others, by_key),
        _events(page.events),
        _settings(page.run),
    ]


def _head(page: Page) -> list[str]:
    cards = [
        f"<div><dt>{escape(each.name)}</dt><dd>{escape(each.value)}</dd>"
        f"<dd class=beside>{escape(each.beside)}</dd></div>"
        for each in page.figures
    ]
    lines = [
        "<header>",
        "<p class=kind>Training run</p>",
        f"<h1>{escape(page.run.name)}</h1>",
        f"<p class=headline>{escape(page.headline)}</p>",
        f"<dl class=figures>{''.join(cards)}</dl>",
    ]
    if page.missing:
        lines.append(f"<aside><h2>What is missing</h2>{_list(page.missing)}</aside>")
    lines.append(
        "<noscript><p>Curves and maps are drawn by a script in this page, and scripts are off. "
        "Figures, events and settings are all here.</p></noscript>"
    )
    return [*lines, "</header>"]


def _curves(title: str, keys: Sequence[str], charts: dict[str, Chart]) -> str:
    if not keys:
        return ""
    drawn = "".join(
        f'<figure class="{"wide" if key in WIDE else ""}" data-chart="{escape(key)}">'
        f"<figcaption><b>{escape(charts[key].title)}</b> <i>{escape(charts[key].note)}</i>"
        "<output></output></figcaption></figure>"
        for key in keys
    )
    return _section(title, f"<div class=grid>{drawn}</div>")


def _time(page: Page) -> str:
    spent = page.spent
    profiled = _profile(page.profile) if page.profile else ""
    if not spent.total_s:
        return _section("Where time went", profiled) if profiled else ""
    parts = [(name, name.replace("_", " "), s) for name, s in spent.phases.items()]
    parts += [
        ("evaluation", "evaluations, and checkpoints before them", spent.evaluations_s),
        ("rest", "between phases: logging, checkpoints, start of evaluations", spent.rest_s),
    ]
    total = spent.total_s - spent.paused_s
    rows = "".join(
        f'<tr><td><span class=swatch data-phase="{escape(name)}"></span>{escape(text)}</td>'
        f"<td>{duration(seconds)}</td><td>{seconds / total if total else 0:.1%}</td></tr>"
        for name, text, seconds in parts
        if seconds > 0
    )
    paused = ""
    if spent.pauses:
        away = duration(spent.paused_s)
        paused = f"<p class=besides>Besides, {away} in which the run was not there.</p>"
    bar = "".join(
        f'<span data-phase="{escape(name)}" data-share="{seconds / total:.6f}"></span>'
        for name, _, seconds in parts
        if seconds > 0 and total
    )
    return _section(
        "Where time went",
        "<p>Seconds of rank 0 by phase. Cool colours compute, warm ones communicate.</p>"
        f"<div class=bar>{bar}</div><div class=grid>"
        f"<div><table><tbody>{rows}</tbody></table>{paused}</div>"
        "<figure data-areas><figcaption><b>Seconds of a step</b><output></output></figcaption>"
        f"</figure></div>{profiled}",
    )


def _profile(profile: Profile) -> str:
    """Two tables of milliseconds: what was exposed first, since phases hold what waits."""
    steps = f"steps {profile.first_step:,} to {profile.last_step:,}"
    kinds = "".join(
        f"<tr><td>{escape(kind)}</td>{_ms(moving)}{_ms(hidden)}{_ms(exposed)}"
        f"<td>{hidden / moving if moving else 0:.0%}</td></tr>"
        for kind, (moving, hidden, exposed) in profile.communication.items()
    )
    phases = "".join(
        f"<tr><td>{escape(name)}</td>{_ms(forward)}{_ms(backward)}"
        f"<td>{(forward + backward) / profile.step_s if profile.step_s else 0:.1%}</td></tr>"
        for name, (forward, backward) in profile.phases.items()
    )
    means = f"{1e3 * profile.step_s:,.1f} ms, means over {counted(profile.num_ranks, 'rank')}"
    return (
        f"<h3>Profiled {steps}</h3><p>Milliseconds of a step of {means}. Hidden is what of "
        "communication lay beside computation.</p><div class=grid>"
        f"<div>{_table(('under way', 'hidden', 'exposed', 'overlap'), kinds)}</div>"
        f"<div>{_table(('forward', 'backward', 'share'), phases)}</div></div>"
    )


def _table(columns: Sequence[str], rows: str) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns))
    return f"<table class=ms><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _ms(seconds: float) -> str:
    return f"<td>{1e3 * seconds:,.2f}</td>"


def _experts(page: Page) -> str:
    parts = []
    pair = [each for each in page.layers.maps if each.key.endswith("ranks_max_over_mean")]
    pair += [each for each in page.layers.maps if each.key.endswith("computed_max_over_mean")]
    if pair:
        maps = "".join(
            f'<figure data-layers="{escape(each.key)}"><figcaption><b>{escape(each.title)}</b>'
            "<output></output></figcaption></figure>"
            for each in pair
        )
        parts.append(
            "<h3>Layers</h3><p>The busiest rank's load over the mean, by layer and step: 1 is "
            "even, 2 is twice what each rank should have."
            f"{' Choose a layer by its row.' if page.chosen_layers else ''}</p>"
            f"<div class=grid>{maps}</div><div class=scale data-scale=layers></div>"
        )
    if page.experts:
        parts.append(
            "<h3>Experts</h3><p>What the routers chose: each expert's load over its layer's mean "
            f"({escape(page.experts.source)}).</p><div class=picker data-picker></div>"
            "<div class=grid data-experts></div><div class=scale data-scale=experts></div>"
        )
    more = [each for each in page.layers.maps if each not in pair]
    if more:
        options = "".join(
            f'<option value="{escape(each.key)}">{escape(each.title)}</option>' for each in more
        )
        parts.append(
            "<h3>More of each layer</h3><figure class=wide data-more><figcaption>"
            f'<select aria-label="Figure">{options}</select><output></output></figcaption>'
            "</figure><div class=scale data-scale=more></div>"
        )
    return _section("Expert load", "".join(parts)) if parts else ""


def _events(events: Sequence[Event]) -> str:
    if not events:
        return ""
    rows = "".join(
        f'<tr><td>{event.step:,}</td><td><span class="tag {event.kind}">{KINDS[event.kind]}'
        f"</span></td><td>{escape(event.text)}{_at(event.time_s)}</td></tr>"
        for event in events
    )
    return _section(
        "Events",
        f"<table class=events><thead><tr><th>step</th><th></th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table>",
    )


def _at(time_s: float) -> str:
    return f" <small>{moment(time_s)}</small>" if time_s else ""


def _settings(run: RunFolder) -> str:
    newest = run.starts[-1] if run.starts else None
    facts: dict[str, str] = {}
    if newest:
        if newest.num_ranks:
            facts["ranks"] = str(newest.num_ranks)
            facts["nodes"] = str(newest.num_nodes)
        facts |= newest.environment
    if run.checkpoints:
        facts["checkpoints kept"] = ", ".join(run.checkpoints)
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    parts = []
    if rows:
        when = " when it was last taken up" if len(run.starts) > 1 else ""
        parts.append(
            f"<h3>What it ran on{when}</h3><table class=facts><tbody>{rows}</tbody></table>"
        )
    if run.config_text:
        parts.append(
            f"<details><summary>config.yaml</summary><pre>{escape(run.config_text)}</pre></details>"
        )
    return _section("Settings", "".join(parts)) if parts else ""


def _foot(page: Page) -> Iterable[str]:
    return ["<footer>", "<h2>How this was drawn</h2>", _list(page.drawn), "</footer>"]


def _section(title: str, inner: str) -> str:
    anchor = title.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{inner}</section>'


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(each)}</li>" for each in sentences) + "</ul>"


def _script() -> str:
    inner = "\n".join(_asset(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{inner}}})();\n'


def _asset(name: str) -> str:
    return resources.files("hecate.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"

"""``hecate apps [URL]``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hecate.errors import UserError

BARS = " ▁▂▃▄▅▆▇█"
UNTAGGED = "(untagged)"
ASK_S = 10.0


def command(
    url: Annotated[
        str, typer.Argument(metavar="[URL]", help="Where the server listens.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str, typer.Option(metavar="KEY", help="An API key, where it asks for one.")
    ] = "",
    watch: Annotated[
        float, typer.Option(metavar="SECONDS", help="Look again so often, until Ctrl-C.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="What the server said, as JSON.")] = False,
) -> None:
    """Show what a server knows of applications, and who is under way."""
    if as_json:
        print(json.dumps(ask(url, key), indent=2))
    elif not watch:
        Console().print(shown(ask(url, key)))
    else:
        with Live(shown(ask(url, key)), auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(watch)
                live.update(shown(ask(url, key)), refresh=True)


def ask(url: str, key: str) -> dict[str, Any]:
    """What ``GET /v1/applications`` says. Raises ``UserError``."""
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/applications"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        request = Request(address, headers=headers)
        with urlopen(request, timeout=ASK_S) as response:
            found = json.load(response)
    except HTTPError as error:
        raise UserError(f"{address} refuses", got=_reason(error), fix=_fix(error.code)) from error
    except (URLError, OSError, ValueError) as error:
        raise UserError(
            f"nothing answers at {address}",
            got=str(getattr(error, "reason", error)),
            fix="hecate serve MODEL starts a server; its address goes here",
        ) from error
    if not isinstance(found, dict) or found.get("object") != "applications":
        raise UserError(f"{address} is no server of Hecate's", got=json.dumps(found)[:200])
    return found


def shown(told: dict[str, Any]) -> RenderableType:
    """Classes with their units, then who is under way."""
    head = Text.assemble(
        ("policy ", "dim"),
        told["policy"],
        (f"   requests: {told['running']} running, {told['waiting']} waiting", "dim"),
        (f"   instances under way: {told['under_way']}", "dim"),
    )
    parts: list[RenderableType] = [head]
    parts += [_class(each) for each in told["classes"]]
    if not told["classes"]:
        parts.append(Text("no application has ended yet", "dim"))
    if told["instances"]:
        parts.append(_instances(told["instances"]))
    return Group(*parts)


def _class(told: dict[str, Any]) -> Table:
    need = told["device_s"]
    title = (
        f"{told['class'] or UNTAGGED}: {told['instances']} instances, device "
        f"{seconds(need['mean'])} on average, 9 of 10 within {seconds(need['p90'])}"
    )
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for name in ("unit", "of 100", "calls", "prompt", "answer", "takes", "", "then"):
        table.add_column(name, justify="left" if name in ("unit", "", "then") else "right")
    edges: dict[str, list[str]] = {}
    for edge in told["edges"]:
        text = f"{edge['to'] or 'end'} {edge['probability']:.0%}"
        edges.setdefault(edge["from"], []).append(text)
    for unit in told["units"]:
        kind = "" if unit["kind"] == "llm" else f" ({unit['kind']})"
        took = unit["seconds"]  # empty where every run failed
        failed = f", {unit['failed']} failed" if unit["failed"] else ""
        table.add_row(
            f"{unit['unit']}{kind}",
            f"{100 * unit['share']:.0f}",
            *(_mean(unit.get(name)) for name in ("calls", "prompt_tokens", "output_tokens")),
            f"{seconds(took['p50']) if took else '?'}{failed}",
            bars(took.get("histogram", [])),
            ", ".join(edges.get(unit["unit"], ())),
        )
    return table


def _instances(instances: Iterable[dict[str, Any]]) -> Table:
    table = Table(title="under way", title_justify="left", title_style="bold", expand=False)
    for name in ("turn", "class", "instance", "age", "had", "needs", "deadline", "now"):
        table.add_column(name, justify="left" if name in ("class", "instance", "now") else "right")
    for each in instances:
        deadline, left = each["deadline_in_s"], each["left_s"]
        table.add_row(
            "" if each["position"] is None else str(each["position"]),
            each["class"],
            each["id"][:16],
            seconds(each["age_s"]),
            seconds(each["attained_s"]),
            "?" if left is None else seconds(left),
            "" if deadline is None else seconds(deadline),
            ", ".join(each["open"]),
        )
    return table


def seconds(value: float) -> str:
    """As people read it."""
    if abs(value) < 1:
        return f"{1000 * value:.3g} ms" if abs(value) >= 1e-6 else "0 s"
    return f"{value:.3g} s" if abs(value) < 1000 else f"{value / 60:.0f} min"


def bars(shares: list[float]) -> str:
    """A histogram in one line; what is there at all is seen."""
    most = max(shares, default=0) or 1
    return "".join(BARS[math.ceil(8 * share / most)] for share in shares)


def _mean(spread: dict[str, Any] | None) -> str:
    return f"{spread['mean']:.3g}" if spread else ""


def _reason(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


def _fix(status: int) -> str:
    return {401: "give --key KEY", 404: "is it a server of Hecate's, of this version?"}.get(
        status, ""
    )

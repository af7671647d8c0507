"""Nine classes of applications, by the shapes that were published for them (2506.14851).

Lengths, fan-outs, tools' seconds and loops are the means of the demand graphs that the paper's
artifact holds; spreads are those with which a class's total, at 1e-4 s a token of a prompt and 0.06
s a token of an answer, has the median and the 95th percentile of walks through these graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.scheduling.applications.traces import Kind

PUBLISHED_PROMPT_TOKEN_S = 1e-4
PUBLISHED_OUTPUT_TOKEN_S = 0.06


@dataclass(frozen=True)
class Spread:
    """A lognormal amount: its ``mean``, and its standard deviation as a share ``cv`` of it."""

    mean: float
    cv: float = 0.0


@dataclass(frozen=True)
class LlmUnit:
    """``prompt`` and ``output``: tokens of one call. ``calls``: how many side by side.

    ``like``: the unit that has as many calls as this one. ``lists``: the unit that has a call for
    each entry of this one's answer, which is the longer the more there are.
    """

    name: str
    prompt: Spread
    output: Spread
    calls: Spread = Spread(1.0)
    like: str = ""
    lists: str = ""


@dataclass(frozen=True)
class ToolUnit:
    """``seconds`` on another backend."""

    name: str
    kind: Kind
    seconds: Spread


Unit = LlmUnit | ToolUnit


@dataclass(frozen=True)
class Part:
    """``units``, one after another, then, with probability ``again``, ``between`` and all of it
    once more. All of it is left out unless ``chance`` has it so."""

    units: tuple[Unit, ...]
    again: float = 0.0
    between: tuple[Unit, ...] = ()
    chance: float = 1.0


@dataclass(frozen=True)
class Shape:
    """A class. ``percent``: of all applications. ``published_s``: mean, median and 95th percentile
    of the total at the published seconds a token, tools' seconds too."""

    name: str
    percent: int
    parts: tuple[Part, ...]
    published_s: tuple[float, float, float]


def _llm(
    name: str,
    prompt: float,
    output: float,
    calls: Spread = Spread(1.0),  # noqa: B008 - frozen
    *,
    cv: float = 0.25,
    like: str = "",
    lists: str = "",
) -> LlmUnit:
    return LlmUnit(name, Spread(prompt, 0.2), Spread(output, cv), calls, like, lists)


_SCORES = Spread(20.0)

SHAPES: tuple[Shape, ...] = (
    Shape(
        "factool_code",
        22,
        (
            Part(
                (
                    _llm("queries", 356, 66),
                    _llm("solutions", 302, 182, Spread(3.0), cv=0.18),
                    ToolUnit("docker", Kind.CONTAINER, Spread(1.0, 0.3)),
                )
            ),
        ),
        (38.0, 37.0, 47.0),
    ),
    Shape(
        "factool_kbqa",
        22,
        (
            Part(
                (
                    _llm("claims", 699, 67, lists="queries"),
                    _llm("queries", 347, 16, Spread(3.7, 0.18)),
                    ToolUnit("search", Kind.SEARCH, Spread(1.3, 0.3)),
                    _llm("verify", 602, 143, like="queries"),
                )
            ),
        ),
        (41.0, 40.0, 57.0),
    ),
    Shape(
        "factool_math",
        3,
        (
            Part(
                (
                    _llm("claims", 787, 81, cv=0.12, lists="queries"),
                    _llm("queries", 242, 25, Spread(2.6, 0.12), cv=0.12),
                )
            ),
        ),
        (9.0, 9.0, 11.0),
    ),
    Shape(
        "react_fever",
        3,
        (
            Part(
                (_llm("thought", 1142, 37),),
                again=0.5,
                between=(ToolUnit("search", Kind.SEARCH, Spread(1.8, 0.3)),),
            ),
        ),
        (6.5, 5.5, 19.0),
    ),
    Shape(
        "react_alfw",
        22,
        (Part((_llm("thought", 2286, 12),), again=0.9),),
        (9.5, 6.9, 28.0),
    ),
    Shape(
        "code_feedback",
        13,
        (
            Part(
                (_llm("generate", 1374, 246),),
                again=0.6,
                between=(ToolUnit("docker", Kind.CONTAINER, Spread(12.3, 0.3)),),
            ),
        ),
        (58.0, 39.0, 171.0),
    ),
    Shape(
        "hugginggpt",
        13,
        (
            Part(
                (
                    _llm("plan", 1767, 112),
                    ToolUnit("dnn", Kind.MODEL, Spread(24.8, 0.625)),
                    _llm("answer", 602, 505),
                )
            ),
        ),
        (61.0, 57.0, 98.0),
    ),
    Shape(
        "langchain_mapreduce",
        1,
        (
            Part((_llm("map", 453, 148, Spread(20.0, 0.2)),)),
            Part((_llm("collapse", 1467, 604, Spread(2.7, 0.35)),), chance=0.8),
            Part((_llm("final", 1753, 669),)),
        ),
        (313.0, 320.0, 451.0),
    ),
    Shape(
        "got_docmerge",
        1,
        (
            Part((_llm("generate", 1242, 784, Spread(2.0)),)),
            Part((_llm("score", 1915, 285, _SCORES),), again=0.5),
            Part((_llm("aggregate", 2903, 790, Spread(2.0)),)),
            Part((_llm("score_merged", 1915, 285, _SCORES),), again=0.5),
            Part((_llm("improve", 2148, 826),)),
            Part((_llm("score_last", 1923, 307, _SCORES),)),
        ),
        (2030.0, 1967.0, 3356.0),
    ),
)

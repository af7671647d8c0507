"""What the fields of a record are read as: a text here, a conversation elsewhere. Pure.

A ``Form`` says which fields it takes and makes a ``Record`` of them. Every fault is a ``DataError``
that names the record's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hecate.errors import DataError


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """The text of one record, and how many bytes of its file it took (a share, for tables).

    ``messages``: of a conversation, its turns; the text is then theirs, a line apart.
    """

    text: str
    where: str
    source_bytes: int
    messages: tuple[Message, ...] = ()


class Form(Protocol):
    """How records are read; both methods raise ``DataError``."""

    def fields(self, found: Sequence[str], where: str) -> Sequence[str]:
        """Which of the fields that are there to read."""

    def record(self, values: Mapping[str, object], where: str, source_bytes: int) -> Record:
        """The record whose fields have these ``values``, at least those that ``fields`` named."""


@dataclass(frozen=True)
class TextForm:
    """The text of one field, or of several joined by line ends."""

    names: tuple[str, ...]

    def fields(self, found: Sequence[str], where: str) -> Sequence[str]:
        missing = [name for name in self.names if name not in found]
        if missing:
            raise DataError(
                f"{where} has no field {missing[0]!r}",
                got=shown_fields(found),
                expected="the fields that data.text_field names: "
                + ", ".join(map(repr, self.names)),
                fix='set data.text_field to those to train on, such as "question,answer"',
            )
        return self.names

    def record(self, values: Mapping[str, object], where: str, source_bytes: int) -> Record:
        texts: list[str] = []
        for name in self.names:
            value = values[name]
            if not isinstance(value, str):
                raise DataError(
                    f"{where}: field {name!r} is not text",
                    got="null" if value is None else type(value).__name__,
                    expected="a string in every record",
                    fix="drop that record, or set data.text_field to a field of text",
                )
            texts.append(value)
        return Record(encodable("\n".join(texts), where), where, source_bytes)


def encodable(text: str, where: str) -> str:
    """``text`` itself if UTF-8 can hold it. Raises ``DataError``."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair",
            got=ascii(error.object[error.start]),
            expected="text that UTF-8 can hold",
            fix="mend or drop that record",
        ) from error
    return text


def shown_fields(found: Sequence[str]) -> str:
    """The fields of a record, for a message."""
    return "the fields " + ", ".join(map(repr, found)) if found else "no field at all"

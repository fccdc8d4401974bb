"""The language of files.list's `q`, and the partial answers that `fields` asks for.

As https://developers.google.com/workspace/drive/api/guides/ref-search-terms has it, as far as
megafs, rclone and Google's own client ask: name, mimeType, trashed, parents and appProperties,
with `and`, `or`, `not` and parentheses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.services.gdrive.state import FileRecord

Matches = Callable[[FileRecord], bool]

_TOKEN = re.compile(r"\s*(?:'((?:[^'\\]|\\.)*)'|([A-Za-z]+)|(!=|=|[(){}]))")


class BadQuery(ValueError):
    """The query is not one; Drive answers 400, reason "invalid"."""


def parse(text: str) -> Matches:
    """Return the test that *text* stands for."""
    parser = _Parser(text)
    matches = parser.any_of()
    parser.end()
    return matches


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise BadQuery(text)
            quoted, word, sign = found.groups()
            if quoted is not None:
                self._tokens.append(("value", re.sub(r"\\(.)", r"\1", quoted)))
            else:
                self._tokens.append(("word", word or sign))
            at = found.end()

    def _next(self, wanted: str = "") -> str:
        if not self._tokens:
            raise BadQuery("it ends early")
        kind, text = self._tokens.pop(0)
        if wanted and (kind, text) != ("word", wanted):
            raise BadQuery(f"{text} instead of {wanted}")
        return text

    def _value(self) -> str:
        if self._peek()[0] != "value":
            raise BadQuery("a value is missing")
        return self._next()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[0] if self._tokens else ("", "")

    def end(self) -> None:
        if self._tokens:
            raise BadQuery(self._tokens[0][1])

    def any_of(self) -> Matches:
        terms = [self._all_of()]
        while self._peek() == ("word", "or"):
            self._next()
            terms.append(self._all_of())
        return lambda file: any(term(file) for term in terms)

    def _all_of(self) -> Matches:
        terms = [self._term()]
        while self._peek() == ("word", "and"):
            self._next()
            terms.append(self._term())
        return lambda file: all(term(file) for term in terms)

    def _term(self) -> Matches:
        kind, text = self._peek()
        if (kind, text) == ("word", "not"):
            self._next()
            inner = self._term()
            return lambda file: not inner(file)
        if (kind, text) == ("word", "("):
            self._next()
            inner = self.any_of()
            self._next(")")
            return inner
        if kind == "value":
            parent = self._next()
            self._next("in")
            self._next("parents")
            return lambda file: parent in file.parents
        field = self._next()
        sign = self._next()
        if field in ("appProperties", "properties") and sign == "has":
            for word in ("{", "key", "="):
                self._next(word)
            key = self._value()
            for word in ("and", "value", "="):
                self._next(word)
            value = self._value()
            self._next("}")
            return lambda file: file.app_properties.get(key) == value
        if field == "trashed" and sign in ("=", "!="):
            wanted = (self._next() == "true") == (sign == "=")
            return lambda file: file.trashed == wanted
        if field in ("name", "mimeType") and sign in ("=", "!=", "contains"):
            value = self._value()

            def compare(file: FileRecord) -> bool:
                found = file.name if field == "name" else file.mime
                if sign == "contains":
                    return found.startswith(value)
                return (found == value) == (sign == "=")

            return compare
        raise BadQuery(f"{field} {sign}")


def pick(values: Mapping[str, Any], fields: str) -> dict[str, Any]:
    """Return the part of *values* that `fields=` asks for: "a,b(c,d),e/f", "*" for all."""
    if fields == "*":
        return dict(values)
    picked: dict[str, Any] = {}
    for field, inner in _split(fields):
        if field == "*":
            picked.update(values)
        elif field in values:
            value = values[field]
            if inner and isinstance(value, list):
                value = [pick(each, inner) for each in value]
            elif inner and isinstance(value, dict):
                value = pick(value, inner)
            picked[field] = value
    return picked


def _split(fields: str) -> list[tuple[str, str]]:
    parts: list[str] = []
    depth, begin = 0, 0
    for i, char in enumerate(fields):
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            parts.append(fields[begin:i])
            begin = i + 1
    parts.append(fields[begin:])
    if depth:
        raise BadQuery(fields)
    found = []
    for part in parts:
        name, bracket, inner = part.strip().partition("(")
        if bracket:
            inner = inner.removesuffix(")")
        elif "/" in name:
            name, _, inner = name.partition("/")
        found.append((name.strip(), inner))
    return found

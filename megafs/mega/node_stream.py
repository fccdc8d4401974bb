"""The answer to `f`, taken apart as it comes: an account may have millions of nodes.

It is one object in an array: {"f": [node, ...], "ok": [...], "sn": "...", ...}.  The elements of an
array are given out one by one, other values whole, so what is held is one piece of the network's
and one element.
"""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from enum import Enum
from typing import Any, Final, NamedTuple

from megafs.errors import Unavailable
from megafs.mega.errors import error_for

#: Characters of one element or value.
_LONGEST: Final = 4 << 20
_SPACE: Final = re.compile(r"[ \t\r\n,]*")
_NUMBER: Final = re.compile(r"\[?\s*(-[0-9]{1,6})\s*\]?\s*\Z")


class Item(NamedTuple):
    """key: of the outer object.  value: of it, or of one element of its array."""

    key: str
    value: Any


class _State(Enum):
    START = 1
    KEY = 2
    VALUE = 3
    ELEMENT = 4
    END = 5


class ReplyScanner:
    """Takes pieces of the answer, gives items."""

    def __init__(self) -> None:
        self._decode_text = getincrementaldecoder("utf-8")("replace").decode
        self._decode_value = json.JSONDecoder().raw_decode
        self._text = ""
        self._state = _State.START
        self._key = ""

    def feed(self, piece: bytes) -> list[Item]:
        """Take the next piece; return what has become whole.  Raises Unavailable for no JSON."""
        self._text += self._decode_text(piece)
        items: list[Item] = []
        at = 0
        while (then := self._step(at, items)) is not None:
            at = then
        self._text = self._text[at:]
        if len(self._text) > _LONGEST:
            raise _not_understood()
        return items

    def close(self) -> None:
        """The answer has ended: raise what a number in its place means, or that it is cut short."""
        number = _NUMBER.match(self._text) if self._state is _State.START else None
        if number is not None:
            raise error_for(int(number[1]))
        if self._state is not _State.END:
            raise Unavailable("the list of nodes that MEGA sends is cut short")

    def _step(self, at: int, items: list[Item]) -> int | None:
        """Go on from *at*; None if more is needed first."""
        text = self._text
        space = _SPACE.match(text, at)
        assert space is not None
        at = space.end()
        if at == len(text) or self._state is _State.END:
            return None
        letter = text[at]
        match self._state:
            case _State.START:
                if letter == "{":
                    self._state = _State.KEY
                elif letter not in "[":
                    if letter == "-":
                        return None  # a number: `close` reads it
                    raise _not_understood()
                elif text[at + 1 : at + 2] == "-":
                    return None
                return at + 1
            case _State.KEY:
                if letter == "}":
                    self._state = _State.END
                    return at + 1
                found = self._value(at)
                if found is None:
                    return None
                key, at = found
                colon = re.compile(r"\s*:\s*").match(text, at)
                if colon is None or colon.end() == len(text):
                    return None
                if not isinstance(key, str):
                    raise _not_understood()
                self._key, self._state = key, _State.VALUE
                return colon.end()
            case _State.VALUE:
                if letter == "[":
                    self._state = _State.ELEMENT
                    return at + 1
                found = self._value(at)
                if found is None:
                    return None
                items.append(Item(self._key, found[0]))
                self._state = _State.KEY
                return found[1]
            case _State.ELEMENT:
                if letter == "]":
                    self._state = _State.KEY
                    return at + 1
                found = self._value(at)
                if found is None:
                    return None
                items.append(Item(self._key, found[0]))
                return found[1]
        return None

    def _value(self, at: int) -> tuple[Any, int] | None:
        """The value that begins at *at*, and where it ends; None if it has not come whole."""
        try:
            value, end = self._decode_value(self._text, at)
        except (ValueError, RecursionError):
            return None  # or it never will be: `feed` has a limit
        if end == len(self._text):
            return None  # a number may go on
        return value, end


def _not_understood() -> Unavailable:
    return Unavailable("the list of nodes that MEGA sends is not understood")

"""Values that do not show themselves: what holds a secret is a `SecretStruct`, not a `Struct`.

A Struct's repr, and what rich prints of it, are made of all its fields: they would end in a log or
in a traceback.
"""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import Struct


class SecretStruct(Struct, frozen=True):
    """A Struct whose repr shows the fields named in `_shown`, and nothing of the others."""

    _shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self._shown]

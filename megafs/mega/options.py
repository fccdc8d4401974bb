"""What the -o options of `mega:` and of links mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from megafs.errors import BadUsage
from megafs.mega.api import HOST, check_host

Part = Literal["files", "incoming", "rubbish"]
_PARTS: Final[tuple[Part, ...]] = ("files", "incoming", "rubbish")


class MegaOptions(Struct, frozen=True):
    """account: which login; "" for the only one.  part: of the account, what is shown."""

    account: str = ""
    part: Part = "files"
    api: str = HOST


def read_options(options: Mapping[str, str]) -> MegaOptions:
    """Return what *options* mean; BadUsage for what cannot be."""
    asked = options.get("part", "files")
    part = next((known for known in _PARTS if known == asked), None)
    if part is None:
        raise BadUsage(f"part= takes {', '.join(_PARTS)}, not {asked!r}")
    api = options.get("api")
    return MegaOptions(
        options.get("account", "").lower(), part, HOST if api is None else check_host(api)
    )

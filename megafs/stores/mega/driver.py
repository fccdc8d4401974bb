"""`mega:` is no place for a volume: this says so where one is asked for (docs/stores/mega.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from megafs.errors import BadStore
from megafs.stores.urls import Location


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> NoReturn:
    """Refuse: MEGA cannot create an object only if it is absent, so commits could not be ordered.

    `mount`, `get` and `import` know `mega:` and links by themselves, and do not come here.
    """
    raise BadStore(
        "no volume can be kept in a MEGA account, whose files are only read here: megafs mount"
        " mega: DIR shows them; for a volume there is MEGA S4, s3://BUCKET (docs/stores/mega.md)"
    )

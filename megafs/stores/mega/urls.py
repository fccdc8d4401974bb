"""What is meant as something of MEGA's: `mega:/path` or a link.  Text only: nothing is imported."""

from __future__ import annotations

import re
from typing import Final

#: How a link begins.
LINK_HOST: Final = re.compile(
    r"(?:https?://)?(?:www\.)?mega\.(?:co\.)?(?:nz|io|app)/", re.IGNORECASE
)


def is_link(text: str) -> bool:
    """Whether *text* is meant as a link to MEGA, right or wrong."""
    return LINK_HOST.match(text) is not None


def is_account(text: str) -> bool:
    """Whether *text* is meant as the files of an account."""
    return text.lower().startswith("mega:")

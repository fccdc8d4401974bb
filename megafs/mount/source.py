"""What the kernel shows as mounted: the source in /proc/mounts, df and findmnt.

The URL, escaped as in RFC 3986: programs take a source with a colon for a server and its path, so
du called directories of `file:///...` circular and `df -l` left them out.
"""

from __future__ import annotations

import urllib.parse


def of_url(url: str) -> str:
    """The source for the volume at *url*: "s3%3A//bucket/home"."""
    return plain(url.replace("%", "%25").replace(":", "%3A"))


def to_url(source: str) -> str:
    """The URL that a source was made of."""
    return urllib.parse.unquote(source)


def plain(text: str) -> str:
    """*text* without what is not ASCII, or a space: what libfuse and mountinfo can take."""
    return "".join(
        c if " " < c < "\x7f" else "".join(f"%{b:02X}" for b in c.encode()) for c in text
    )


def as_option(source: str) -> str:
    """libfuse's option that sets the source, with commas escaped."""
    return "fsname=" + source.replace("\\", "\\\\").replace(",", "\\,")

"""`megafs unpin`; see cli/pin.py."""

from megafs.cli.pin import unpin as command

__all__ = ["command"]

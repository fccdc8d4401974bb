"""The same machines as the tests of mounts."""

from tests.mount.conftest import machine, place, processes, volume

__all__ = ["machine", "place", "processes", "volume"]

"""One volume, made once; every test attacks a copy of its own."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.threats.hostile import Site, make_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return trio.run(
        make_site, tmp_path_factory.mktemp("site"), clock=MockClock(autojump_threshold=0)
    )

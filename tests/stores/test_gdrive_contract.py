"""The Google Drive driver keeps the contract of stores."""

from __future__ import annotations

import pytest

from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying
from tests.services.gdrive.server import DriveServer
from tests.stores.contract import StoreContract
from tests.stores.gdrive import Machines


class TestDrive(StoreContract):
    @pytest.fixture
    async def store(self, machines: Machines) -> ObjectStore:
        made = machines.open()
        await made.create()
        return made


class TestDriveThatLags(StoreContract):
    """What is made here is known here, whatever searches and the feed say."""

    @pytest.fixture
    async def store(self, drive: DriveServer, machines: Machines) -> ObjectStore:
        made = machines.open()
        await made.create()
        drive.drive.list_lag = drive.drive.change_lag = 3600.0
        return made


class TestAsMegafsUsesIt(StoreContract):
    @pytest.fixture
    async def store(self, machines: Machines) -> ObjectStore:
        made = machines.open(connections=12)
        await made.create()
        return Retrying(Limited(made, 4, 8))

"""Tests against a real account: `make live SERVICE=URL OPTIONS=...`; not collected without one.

SERVICE is the URL of a folder in which the tests may make folders of their own, and do; they are
emptied at the end.  Credentials come from where they always do: `megafs login`, ~/.aws, options.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from megafs.config import state_home
from megafs.stores.base import ObjectStore, list_all
from megafs.stores.stack import open_store

URL = os.environ.get("MEGAFS_LIVE_URL", "").rstrip("/")
OPTIONS = os.environ.get("MEGAFS_LIVE_OPTIONS", "")

collect_ignore_glob = [] if URL else ["test_*.py"]


def store_options() -> dict[str, str]:
    """OPTIONS as the driver gets them."""
    pairs = (part.partition("=") for part in OPTIONS.split(",") if part)
    return {name: value for name, _, value in pairs}


def fresh_url() -> str:
    """A folder that nobody has used yet."""
    return f"{URL}/live-{secrets.token_hex(6)}"


async def empty(url: str) -> None:
    """Delete every object of a store."""
    store = open_store(url, store_options())
    try:
        async for page in list_all(store, ""):
            for entry in page.entries:
                await store.delete(entry.name)
    finally:
        await store.aclose()


@pytest.fixture
async def store() -> AsyncIterator[ObjectStore]:
    """An empty store in the account, as megafs uses it; emptied again afterwards."""
    url = fresh_url()
    made = open_store(url, store_options())
    await made.create()
    yield made
    await made.aclose()
    await empty(url)


@pytest.fixture
def logins() -> Path:
    """Where the logins of whoever runs the tests are."""
    return state_home() / "logins"

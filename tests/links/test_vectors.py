"""The command reads the links that the page reads (tests/page/vectors.test.js)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from megafs.errors import BadPassphrase
from megafs.links import link_text
from megafs.links.fetch import Fetcher
from megafs.links.reader import SharedFiles, open_link
from megafs.stores.base import Buffer

VECTORS = Path(__file__).parent.parent / "vectors" / "share.json"
CASES: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]


class Given(Fetcher):
    """Has the objects of a vector."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__()
        base = link_text.parse(case["link"]).manifest_url
        self.objects = {base: base64.b64decode(case["manifest"])}
        for url, data in case["objects"].items():
            self.objects[urljoin(base, url)] = base64.b64decode(data)

    async def get(self, url: str, start: int, length: int) -> bytes:
        return self.objects[url][start : start + length]


async def opened(case: dict[str, Any], password: str | None) -> SharedFiles:
    return await open_link(link_text.parse(case["link"]), Given(case), password)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
async def test_a_vector(case: dict[str, Any]) -> None:
    shared = await opened(case, case["password"])
    found = {}
    for file in shared.manifest.files:
        if file.folder:
            continue
        out = bytearray(file.size)

        async def sink(at: int, data: Buffer, out: bytearray = out) -> None:
            out[at : at + len(data)] = data

        await shared.copy(file, sink)
        found[file.path] = base64.b64encode(out).decode()
    assert found == case["files"]
    if case["password"]:
        with pytest.raises(BadPassphrase):
            await opened(case, case["password"] + "x")

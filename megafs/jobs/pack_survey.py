"""The packs of the committed tree, and how much of each is in use."""

from __future__ import annotations

import apsw
from msgspec import Struct

from megafs.concurrency import offload
from megafs.tree import queries_packs
from megafs.tree.schema import PackRow
from megafs.volume.volume import Volume


class PackSurvey(Struct):
    """The committed tree, as far as packs go.

    rows: packs by number.  live: of each that a file needs, the sealed bytes of the chunks that are
    needed.  marks: since when a pack is marked as garbage, in ns.
    """

    rows: dict[int, PackRow]
    live: dict[int, int]
    marks: dict[int, int]


async def survey_packs(volume: Volume) -> PackSurvey:
    """Look at every pack, beside the event loop."""
    reader = volume.replica.committed_reader()
    try:
        return await offload(_survey, reader)
    finally:
        reader.close()


def _survey(db: apsw.Connection) -> PackSurvey:
    packs = queries_packs.all_packs(db)
    live = {n: size for n, size in queries_packs.live_bytes(db).items() if n in packs}
    return PackSurvey(packs, live, queries_packs.garbage_marks(db))

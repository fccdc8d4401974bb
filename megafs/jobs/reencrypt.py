"""`megafs key reencrypt`: seal again what the key of an earlier epoch sealed.

Chunks are copied into new packs as when packs are compacted (reseal.py); then a checkpoint of every
row replaces what commits and checkpoints hold.  The old objects go with gc, after the retention.
Interrupted, it goes on with what is left.
"""

from __future__ import annotations

from typing import Final

from megafs.jobs.committing import check_writable
from megafs.jobs.messages import ReencryptArgs, ReencryptResult
from megafs.jobs.pack_survey import survey_packs
from megafs.jobs.reseal import Resealer
from megafs.progress import OnProgress, Progress
from megafs.tree import link_records
from megafs.volume.volume import Volume

#: Exit codes.
DONE: Final = 0
SOME_LEFT: Final = 3


async def reencrypt(
    volume: Volume, args: ReencryptArgs, on_progress: OnProgress
) -> ReencryptResult:
    """Seal everything that an earlier epoch's key sealed again, under the current one."""
    check_writable(volume, "re-encrypting")
    epoch = volume.keyring.epoch
    survey = await survey_packs(volume)
    old = [n for n in sorted(survey.live) if survey.rows[n].epoch < epoch]
    resealer = Resealer(volume, args.rate)
    for done, number in enumerate(old):
        on_progress(Progress(done, len(old), "packs sealed again"))
        await resealer.reseal(survey.rows[number])
        if args.limit and resealer.moved_bytes >= args.limit:
            break
    await resealer.finish()
    left = [n for n in old if volume.replica.tree.is_named(n)]
    if not left:
        # What commits and checkpoints hold is sealed anew by a checkpoint of every row.
        volume.replica.parts.forget()
        await volume.checkpointer.write()
    linked = link_records.linked_packs(volume.replica.db) & {
        number for number, pack in survey.rows.items() if pack.epoch < epoch
    }
    if linked:
        resealer.notes.append(
            f"{len(linked)} packs stay under an earlier key, since links lead there: megafs share"
            " list shows them"
        )
    text = (
        f"{resealer.packs} packs ({resealer.moved_bytes} bytes) sealed under the key of epoch"
        f" {epoch}"
    )
    if left:
        text += f"; {len(left)} packs are left: run it again"
    else:
        text += "; what was sealed before goes with gc, after the retention"
    return ReencryptResult(
        exit_code=SOME_LEFT if left else DONE,
        text=text,
        epoch=epoch,
        packs=resealer.packs,
        moved_bytes=resealer.moved_bytes,
        left=len(left),
        notes=resealer.notes,
    )

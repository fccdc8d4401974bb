"""What jobs are asked and what they answer: the fields that scripts read in --json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megafs.errors import BadUsage, Fault
from megafs.jobs import messages, registry
from megafs.jobs.messages import as_message
from megafs.progress import ignore
from tests.fs.opened import ROOT, opened, put_file

#: The fields of every answer, as version 0.1.0 had them.
FIELDS: dict[str, set[str]] = {
    "fsck": {
        "exit_code", "text", "files", "used_bytes", "sequence", "problems", "problem_count",
        "repaired", "repaired_count", "notes",
    },
    "scrub": {
        "exit_code", "text", "complete", "resumed", "chunks", "bytes", "objects", "damaged",
        "damaged_count", "unnamed", "unnamed_count", "unnamed_bytes",
    },
    "gc": {
        "exit_code", "text", "marked", "unmarked", "dropped", "deleted", "deleted_bytes",
        "waiting", "compacted_packs", "moved_bytes", "folded_commits", "removed_checkpoints",
        "removed_parts", "removed_beats", "notes", "removed_shares",
    },
    "reencrypt": {"exit_code", "text", "epoch", "packs", "moved_bytes", "left", "notes"},
    "log": {"commits", "more", "cut_short"},
    "undelete": {"path", "removed", "more", "cut_short"},
    "restore": {
        "path", "from", "sequence", "time", "files", "directories", "bytes", "text",
    },
    "snapshot-create": {"name", "sequence", "time", "text"},
    "snapshot-list": {"snapshots"},
    "snapshot-delete": {"name", "sequence", "text"},
}  # fmt: skip

ARGS: dict[str, dict[str, Any]] = {
    "restore": {"path": "/f", "at": "2", "to": "/again"},
    "snapshot-create": {"name": "now there"},
    "snapshot-delete": {"name": "now there"},
}


async def test_every_answer_has_the_fields_it_had(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await put_file(volume.fs, 1, b"f", b"x" * 5000)
        await volume.drain()
        for name in FIELDS:  # snapshots are made before they are deleted
            result = await registry.run(volume, name, ARGS.get(name, {}), ignore)
            assert set(result) == FIELDS[name], name
        log = await registry.run(volume, "log", {"path": "/f"}, ignore)
        assert set(log) == {"path", "events", "more", "cut_short"}
        (event,) = log["events"]
        assert set(event) == {"sequence", "time", "host", "what", "path", "size"}
        (commit, *_) = (await registry.run(volume, "log", {}, ignore))["commits"]
        assert set(commit) == {"sequence", "time", "host", "this", "operations", "hash"}
        await volume.fs.unlink(1, b"f", ROOT)
        (removed,) = (await registry.run(volume, "undelete", {}, ignore))["removed"]
        assert set(removed) == {
            "path", "sequence", "time", "host", "directory", "size", "mtime", "files", "with",
            "exists",
        }  # fmt: skip
        back = await registry.run(volume, "undelete", {"path": "/f"}, ignore)
        assert set(back) == FIELDS["restore"]


@pytest.mark.parametrize("name", registry.JOBS)
def test_every_job_can_be_loaded(name: str) -> None:
    assert callable(registry.JOBS[name]._load())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("fsck", {"repair": "yes"}),
        ("gc", {"retention": "a week"}),
        ("restore", {"at": "2"}),
        ("pin", {}),
        ("log", {"limit": "many"}),
        ("nothing-like-it", {}),
    ],
)
async def test_what_cannot_be_asked_is_refused_with_a_sentence(
    tmp_path: Path, name: str, args: dict[str, Any]
) -> None:
    async with opened(tmp_path) as volume:
        with pytest.raises(BadUsage, match=name):
            await registry.run(volume, name, args, ignore)


def test_another_release_may_say_more_but_not_less() -> None:
    asked = messages.FSCK.args_of({"repair": True, "speed": "ludicrous"})
    assert asked == messages.FsckArgs(repair=True)
    known = {"exit_code": 0, "text": "done", "colour": "blue"}
    assert messages.UNPIN.result_of(known) == messages.UnpinResult(0, "done")
    with pytest.raises(Fault, match="the answer of unpin"):
        messages.UNPIN.result_of({"exit_code": 0})


TEXTS = st.text(st.characters(codec=None), max_size=20)
NUMBERS = st.integers(0, 2**63 - 1)


@given(
    st.builds(
        messages.Damage,
        path=st.none() | TEXTS,
        inode=NUMBERS,
        start=NUMBERS,
        end=NUMBERS,
        text=TEXTS,
    )
    | st.builds(messages.Damage, object=TEXTS, text=TEXTS)
)
def test_damage_travels_as_it_is(damage: messages.Damage) -> None:
    result = messages.ScrubResult(4, "bad", True, False, 1, 2, 3, [damage], 1, [], 0, 0)
    assert messages.SCRUB.result_of(as_message(result)) == result


def test_the_two_answers_of_log_and_of_undelete_are_told_apart() -> None:
    commits = messages.LogOfCommits([], more=False, cut_short=True)
    events = messages.LogOfPath("/f", [], more=True, cut_short=False)
    for answer in (commits, events):
        assert messages.LOG.result_of(as_message(answer)) == answer
    removed = messages.RemovedFiles("/", [], more=False, cut_short=False)
    restored = messages.RestoreResult("/f", "/f", 3, 1.5, 1, 0, 5000, "as it was")
    for undeleted in (removed, restored):
        assert messages.UNDELETE.result_of(as_message(undeleted)) == undeleted

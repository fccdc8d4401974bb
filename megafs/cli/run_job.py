"""Run a job (jobs/registry.py) on a mount, inside its process, or on a volume that is not mounted.

A volume that this user has mounted is always worked on by its mount, also when it is named by its
URL: there is one replica for each state directory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from megafs.cli import arguments, output
from megafs.mount import control_client
from megafs.mount.control_messages import JobRequest

#: Seconds without a word from the mount; it says where it is twice a second.
PATIENCE = 120.0

Step = Callable[[dict[str, Any]], None]
Result = dict[str, Any]


def run(
    where: str,
    job: str,
    args: dict[str, Any],
    *,
    options: tuple[str, ...] = (),
    state_dir: Path | None = None,
    cache_dir: Path | None = None,
    read_only: bool = False,
    **secrets: Any,
) -> Result:
    """Run *job* on the mount at, or the volume at, *where* and return its result.

    read_only: the job needs to commit nothing, so that a volume that is not mounted is opened
        without writing to it.
    """
    from megafs.cli.cache import running_mount

    record = running_mount(where)
    with progress(job) as step:
        if record is not None:
            return control_client.ask(
                record,
                JobRequest(job=job, args=args),
                dict[str, Any],
                patience=PATIENCE,
                progress=control_client.listener(dict[str, Any], step),
            )
        read = arguments.read(where, options, state_dir=state_dir, cache_dir=cache_dir, **secrets)
        from megafs.cli.passphrase import credential

        opened_by = credential(read.secrets, what=f"Passphrase for {where}")
        settings = replace(read.settings, read_only=read_only or read.settings.read_only)
        return _on_volume(where, job, args, opened_by, settings, step)


def _on_volume(
    url: str, job: str, args: dict[str, Any], opened_by: Any, settings: Any, step: Step
) -> Result:
    import trio

    from megafs.jobs import registry
    from megafs.volume.open import open_volume

    async def work() -> Result:
        async with open_volume(
            url, opened_by, settings, say=lambda text: step({"text": text})
        ) as volume:
            result = await registry.run(volume, job, args, step)
            await volume.drain()
            return result

    return trio.run(work)


def finish(result: Result, as_json: bool, lines: list[str]) -> int:
    """Show a result, for programs or for people, and return the exit code."""
    if as_json:
        output.show_json(result)
    else:
        for line in lines:
            output.show(line)
        output.show(str(result["text"]))
    return int(result["exit_code"])


@contextmanager
def progress(title: str) -> Iterator[Step]:
    """Show how a job gets on: a moving bar on a terminal, a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar(title) as step:
            yield step
        return
    last = time.monotonic()

    def line(now: dict[str, Any]) -> None:
        nonlocal last
        if time.monotonic() - last < output.LINE_EVERY or not now.get("text"):
            return
        last = time.monotonic()
        of = f"{now['done']} of {now['total']} " if now.get("total") else ""
        output.note(f"{title}: {of}{now['text']}")

    yield line


@contextmanager
def _bar(title: str) -> Iterator[Step]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[beside]}"),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None, beside="")

        def step(now: dict[str, Any]) -> None:
            bar.update(
                task,
                total=now.get("total") or None,
                completed=now.get("done", 0),
                beside=str(now.get("text", "")),
            )

        yield step


def place(item: dict[str, Any]) -> str:
    """A damaged place as one line: the file and its bytes, or the object."""
    name = item.get("path") or item.get("object") or f"inode {item.get('inode')}"
    if item.get("start") is not None:
        return f"{name}: bytes {item['start']} to {item['end'] - 1}: {item['text']}"
    return f"{name}: {item['text']}"

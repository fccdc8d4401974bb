"""Run a job (jobs/registry.py) on a mount, inside its process, or on a volume that is not mounted.

A volume that this user has mounted is always worked on by its mount, also when it is named by its
URL: there is one replica for each state directory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from megafs.cli import arguments, output
from megafs.config import Settings
from megafs.jobs.messages import Damage, JobKind, as_message
from megafs.mount import control_client
from megafs.mount.control_messages import JobRequest
from megafs.printable import printable
from megafs.progress import OnProgress, Progress

if TYPE_CHECKING:
    from megafs.volume.header import Credential

#: Seconds without a word from the mount; it says where it is twice a second.
PATIENCE = 120.0

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)


def run(
    where: str,
    kind: JobKind[A, R],
    args: A,
    *,
    options: tuple[str, ...] = (),
    state_dir: Path | None = None,
    cache_dir: Path | None = None,
    read_only: bool = False,
    settle_forks: bool = False,
    **secrets: Any,
) -> R:
    """Run a job on the mount at, or the volume at, *where* and return its result.

    read_only: the job needs to commit nothing, so that a volume that is not mounted is opened
        without writing to it.  settle_forks: see `Settings`.
    """
    from megafs.cli.cache import running_mount

    record = running_mount(where)
    with progress(kind.name) as on_progress:
        if record is not None:
            message = control_client.ask(
                record,
                JobRequest(job=kind.name, args=as_message(args)),
                dict[str, Any],
                patience=PATIENCE,
                progress=control_client.listener(Progress, on_progress),
            )
            return kind.result_of(message)
        chosen = arguments.mount_options(
            where, options, state_dir=state_dir, cache_dir=cache_dir, **secrets
        )
        from megafs.cli.passphrase import credential

        opened_by = credential(chosen.secrets, prompt=f"Passphrase for {where}")
        settings = replace(
            chosen.settings,
            read_only=read_only or chosen.settings.read_only,
            settle_forks=settle_forks,
        )
        message = _on_volume(where, kind.name, as_message(args), opened_by, settings, on_progress)
        return kind.result_of(message)


def _on_volume(
    url: str,
    name: str,
    args: dict[str, Any],
    opened_by: Credential,
    settings: Settings,
    on_progress: OnProgress,
) -> dict[str, Any]:
    from megafs.concurrency import run_interruptible
    from megafs.jobs import pins, registry
    from megafs.volume.open import open_volume

    async def work() -> dict[str, Any]:
        async with open_volume(
            url, opened_by, settings, say=lambda text: on_progress(Progress(text=text))
        ) as volume:
            await pins.protect(volume)
            result = await registry.run(volume, name, args, on_progress)
            await volume.drain()
            return result

    return run_interruptible(work)


class Finished(Protocol):
    """A result that says how the command ends."""

    @property
    def exit_code(self) -> int: ...
    @property
    def text(self) -> str: ...


def finish(result: Finished, as_json: bool, lines: list[str]) -> int:
    """Show a result, for programs or for people, and return the exit code."""
    if as_json:
        show_json(result)
    else:
        for line in lines:
            output.show(line)
        output.show(result.text)
    return result.exit_code


def show_json(result: object) -> None:
    """Print a result as the document of --json."""
    output.show_json(msgspec.to_builtins(result))


@contextmanager
def progress(title: str) -> Iterator[OnProgress]:
    """Show how a job gets on: a moving bar on a terminal, a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar(title) as step:
            yield step
        return
    last = time.monotonic()

    def line(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < output.LINE_EVERY or not now.text:
            return
        last = time.monotonic()
        of = f"{now.done} of {now.total} " if now.total else ""
        output.note(f"{title}: {of}{now.text}")

    yield line


@contextmanager
def _bar(title: str) -> Iterator[OnProgress]:
    from rich import progress as bars
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    with bars.Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[beside]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None, beside="")

        def update(now: Progress) -> None:
            bar.update(
                task, total=now.total or None, completed=now.done, beside=printable(now.text)
            )

        yield update


def damage_line(damage: Damage) -> str:
    """Damage as one line: the file and its bytes, or the object."""
    name = damage.path or damage.object or f"inode {damage.inode}"
    if damage.start is not UNSET and damage.end is not UNSET:
        return f"{name}: bytes {damage.start} to {damage.end - 1}: {damage.text}"
    return f"{name}: {damage.text}"

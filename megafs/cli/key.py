"""`megafs key`: who can open a volume."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec.structs import asdict, replace

from megafs.cli import arguments, output
from megafs.cli.recovery_output import RecoveryKeyOutput
from megafs.mount.options import MountOptions, Secrets

if TYPE_CHECKING:
    from megafs.stores.base import ObjectStore
    from megafs.volume.header import Credential, Unlocked
    from megafs.volume.header_store import Changed

T = TypeVar("T")

kdf_option = click.option(
    "--kdf",
    type=click.Choice(["default", "rfc9106", "low-memory"]),
    help="What trying the new passphrase costs. [MEGAFS_KDF; default]",
)


def new_secrets(command: Any) -> Any:
    """--new-passphrase-file and --new-key-file."""
    command = click.option(
        "--new-key-file", type=click.Path(path_type=Path), help="Key file of the new slot."
    )(command)
    return click.option(
        "--new-passphrase-file",
        type=click.Path(path_type=Path),
        help="File whose first line is the new passphrase; asked for without it.",
    )(command)


@click.group(name="key", short_help="Who can open a volume.")
def command() -> None:
    """Show and change who can open a volume.

    A volume has key slots; each opens it with a passphrase, a key file, both, or a recovery key.
    Changing a passphrase takes no time and re-encrypts nothing, which also means: whoever knew the
    old one and kept a copy of the old key header can still read.
    """


@command.command(name="list")
@click.argument("url")
@arguments.volume_options
@arguments.json_option
def list_slots(
    url: str,
    options: tuple[str, ...],
    state_dir: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """List the key slots of the volume at URL, as the store shows them; asks for no passphrase."""
    from megafs.volume import header_store
    from megafs.volume.unlock import load_header

    chosen = arguments.mount_options(url, options, state_dir=state_dir, cache_dir=cache_dir)
    header = _with_store(url, chosen, lambda store: load_header(store, url, chosen.settings))
    slots = header_store.list_slots(header)
    if as_json:
        output.show_json(
            {
                "volume": header.fsid.hex(),
                "generation": header.generation,
                "slots": [asdict(slot) for slot in slots],
            }
        )
        return
    output.show(f"volume {header.fsid.hex()}, key header {header.generation}")
    output.show(
        *output.table(
            ["SLOT", "KIND", "MADE", "COST", "LABEL"],
            [
                [
                    slot.id,
                    slot.kind,
                    output.ago(slot.created_ns / 1e9),
                    _cost(slot.cost),
                    slot.label,
                ]
                for slot in slots
            ],
        )
    )


def _cost(cost: dict[str, int] | None) -> str:
    if cost is None:
        return "-"
    return f"{cost['memory_kib'] >> 10} MiB x {cost['time']}"


@command.command(name="add")
@click.argument("url")
@arguments.volume_options
@arguments.secret_options
@new_secrets
@kdf_option
@click.option("--label", default="", help="Name of the new slot.")
@arguments.json_option
def add(url: str, label: str, kdf: str | None, as_json: bool, **given: Any) -> None:
    """Add a key slot: another passphrase, a key file, or both together."""
    from megafs.volume import header_store

    chosen, new = _split(url, given)

    async def change(store: ObjectStore, unlocked: Unlocked) -> Changed:
        return await header_store.add_passphrase(
            store, unlocked, new(), label=label, profile=_profile(kdf)
        )

    _change(url, chosen, change, as_json)


@command.command(name="remove")
@click.argument("url")
@click.argument("slot")
@arguments.volume_options
@arguments.secret_options
@click.option(
    "--recovery-key-file",
    type=click.Path(path_type=Path),
    help="File whose first line is the recovery key, to show that you have it.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@arguments.json_option
def remove(
    url: str,
    slot: str,
    recovery_key_file: Path | None,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Remove the key slot SLOT (its id, the start of it, or its label); never the last one.

    The slot that opens the volume for this very command goes only if something else opens it: where
    nothing but a recovery key is left, it has to be shown (typed, or --recovery-key-file).
    """
    from megafs.volume import header_store

    chosen, _ = _split(url, given)

    async def change(store: ObjectStore, unlocked: Unlocked) -> Changed:
        which = header_store.find_slot(unlocked.header, slot)
        keeping: bytes | None = unlocked.slot_id
        if which == keeping or recovery_key_file is not None:
            keeping = await _other_way_in(
                unlocked, which, recovery_key_file, ask=not (as_json or yes)
            )
        return await header_store.remove_slot(store, unlocked, which, keeping)

    _change(url, chosen, change, as_json)


async def _other_way_in(
    unlocked: Unlocked, going: bytes, recovery_key_file: Path | None, *, ask: bool
) -> bytes | None:
    """Return the slot that opens the volume once *going* is gone, None if that is somebody else's.

    ask: somebody may be asked, if there is a terminal.  Raises BadUsage if nobody is known to have
    what another slot needs, click.Abort if the answer is no.
    """
    from megafs.cli import passphrase
    from megafs.errors import BadUsage
    from megafs.volume import header as headers
    from megafs.volume import isolated_unlock
    from megafs.volume.header import Credential

    others = [slot for slot in unlocked.header.slots if slot.id != going]
    if not others:
        return None  # `remove_slot` has the sentence for that
    at_terminal = sys.stdin.isatty()
    only_recovery = all(slot.kind == headers.RECOVERY for slot in others)
    if only_recovery and recovery_key_file is None and not at_terminal:
        raise BadUsage(
            "this is the slot that opened the volume, and only a recovery key would open it"
            " afterwards: show that you have it with --recovery-key-file FILE, or make a new one"
            " first (megafs key recovery-key)"
        )
    if only_recovery or recovery_key_file is not None:
        if recovery_key_file is None:
            output.note(
                "only a recovery key will open the volume afterwards: show that you have it"
            )
        recovery = Credential(recovery=passphrase.recovery_key(recovery_key_file))
        return (await isolated_unlock.unlock(unlocked.header, recovery)).slot_id
    if ask and at_terminal:
        passphrase.confirm(
            "This is the slot that opened the volume; the others may be other people's."
            " Do you have what one of them needs?"
        )
    return None


@command.command(name="change")
@click.argument("url")
@click.argument("slot", required=False)
@arguments.volume_options
@arguments.secret_options
@new_secrets
@kdf_option
@click.option("--label", help="New name of the slot.")
@arguments.json_option
def change_slot(
    url: str, slot: str | None, label: str | None, kdf: str | None, as_json: bool, **given: Any
) -> None:
    """Replace a passphrase or key file: that of SLOT, or the one that is given to open."""
    from megafs.volume import header_store

    chosen, new = _split(url, given)

    async def change(store: ObjectStore, unlocked: Unlocked) -> Changed:
        which = header_store.find_slot(unlocked.header, slot) if slot else None
        return await header_store.change_passphrase(
            store, unlocked, new(), slot_id=which, label=label, profile=_profile(kdf)
        )

    _change(url, chosen, change, as_json)


@command.command(name="recover")
@click.argument("url")
@arguments.volume_options
@click.option(
    "--recovery-key-file",
    type=click.Path(path_type=Path),
    help="File whose first line is the recovery key; asked for without it.",
)
@new_secrets
@kdf_option
@click.option("--label", default="", help="Name of the new slot.")
@arguments.json_option
def recover(
    url: str,
    recovery_key_file: Path | None,
    label: str,
    kdf: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Open the volume with its recovery key and add a new passphrase."""
    from megafs.cli import passphrase
    from megafs.volume import header_store
    from megafs.volume.header import Credential
    from megafs.volume.unlock import remember_keys, unlock

    chosen, new = _split(url, given)
    recovery = passphrase.recovery_key(recovery_key_file)

    async def work(store: ObjectStore) -> None:
        found = await unlock(store, url, Credential(recovery=recovery), chosen.settings)
        changed = await header_store.add_passphrase(
            store, found.unlocked, new(), label=label, profile=_profile(kdf)
        )
        # From now on the new slot is to be tried first here.
        opened_by = changed.slot_id or found.unlocked.slot_id
        changed = replace(changed, unlocked=replace(changed.unlocked, slot_id=opened_by))
        _show_change(changed, as_json)
        await remember_keys(found, changed.unlocked)

    _with_store(url, chosen, work)


@command.command(name="recovery-key")
@click.argument("url")
@arguments.volume_options
@arguments.secret_options
@arguments.new_recovery_key_option
@arguments.json_option
def recovery_key(url: str, recovery_key_file: Path | None, as_json: bool, **given: Any) -> None:
    """Make a new recovery key; the one before is no longer valid once this has succeeded."""
    from megafs.volume import header_store

    chosen, _ = _split(url, given)
    key_output = RecoveryKeyOutput(recovery_key_file, as_json=as_json)

    async def change(store: ObjectStore, unlocked: Unlocked) -> Changed:
        with key_output.warning_if_void("keep the one before as well, and do this again"):
            return await header_store.new_recovery_key(store, unlocked, key_output.deliver)

    _change(url, chosen, change, as_json, key_output)


@command.command(name="rotate")
@click.argument("url")
@arguments.volume_options
@arguments.secret_options
@new_secrets
@kdf_option
@click.option("--new", "fresh", is_flag=True, help="Ask for a new passphrase as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@arguments.new_recovery_key_option
@arguments.json_option
def rotate(
    url: str,
    kdf: str | None,
    fresh: bool,
    yes: bool,
    recovery_key_file: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Begin a new epoch: a new master key for everything that is written from now on.

    For when the old key may have leaked.  Only the passphrase or key file that opens the volume now
    (or the new one that is given) and a new recovery key, which is printed or written to a file,
    open it afterwards; other key slots go.  Running mounts stop writing and have to be mounted
    again; what they have staged is kept.  What was written before stays sealed under the old key:
    megafs key reencrypt changes that.
    """
    from megafs.cli import passphrase
    from megafs.errors import BadUsage
    from megafs.jobs import rotate as rotating

    asked = bool(fresh or given.get("new_passphrase_file") or given.get("new_key_file"))
    chosen, new = _split(url, given)
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise BadUsage("this drops the key slots of others and stops running mounts: say --yes")
        passphrase.confirm(
            "Other key slots are dropped, and running mounts have to be mounted again. Go on?"
        )
    key_output = RecoveryKeyOutput(recovery_key_file, as_json=as_json)
    credential = passphrase.credential(chosen.secrets, prompt=f"Passphrase for {url}")

    async def work(store: ObjectStore) -> None:
        with key_output.warning_if_void("megafs key list shows which keys the volume has"):
            await rotating.rotate(
                store,
                url,
                credential,
                chosen.settings,
                new if asked else None,
                deliver=key_output.deliver,
                profile=_profile(kdf),
                on_new_keys=lambda changed: _show_change(changed, as_json, key_output),
            )

    _with_store(url, chosen, work)


@command.command(name="reencrypt")
@click.argument("where", metavar="MOUNTPOINT|URL")
@click.option("--rate", metavar="SIZE", help="Copy at most so many bytes per second, e.g. 5MiB.")
@click.option("--limit", metavar="SIZE", help="Stop after so many bytes; the next run goes on.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def reencrypt(where: str, rate: str | None, limit: str | None, as_json: bool, **given: Any) -> int:
    """Seal what was written before the last megafs key rotate again, under the new key.

    All of it is read and written once.  It can be interrupted; the next run goes on.  The old
    objects go with megafs gc, after the retention.

    Exit codes: 0 everything is sealed under the current key, 3 some is left; others as usual.
    """
    from megafs.cli import run_job
    from megafs.config import parse_size
    from megafs.jobs.messages import REENCRYPT, ReencryptArgs

    args = ReencryptArgs(
        rate=parse_size(rate) if rate else None, limit=parse_size(limit) if limit else None
    )
    result = run_job.run(where, REENCRYPT, args, **given)
    return run_job.finish(result, as_json, result.notes)


# -- what they share


def _profile(kdf: str | None) -> str:
    return kdf or os.environ.get("MEGAFS_KDF") or "default"


def _split(url: str, given: dict[str, Any]) -> tuple[MountOptions, Callable[[], Credential]]:
    """Return the options, and a way to ask for the new credential once the old one was right."""
    new_file = given.pop("new_passphrase_file", None)
    new_key = given.pop("new_key_file", None)
    chosen = arguments.mount_options(url, given.pop("options"), **given)

    def new() -> Credential:
        from megafs.cli import passphrase

        sources = Secrets(passphrase_file=new_file, key_file=new_key)
        # Neither the environment nor systemd speaks of the new one.
        return passphrase.credential(sources, new=True, prompt="New passphrase", environ={})

    return chosen, new


def _with_store(url: str, chosen: MountOptions, work: Callable[[ObjectStore], Awaitable[T]]) -> T:
    import trio

    from megafs.concurrency import run_interruptible
    from megafs.stores.stack import Traffic, open_store

    async def run() -> T:
        store = open_store(
            url, chosen.settings.store_options, Traffic(patience=chosen.settings.deadline)
        )
        try:
            return await work(store)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await store.aclose()

    return run_interruptible(run)


def _change(
    url: str,
    chosen: MountOptions,
    change: Callable[[ObjectStore, Unlocked], Awaitable[Changed]],
    as_json: bool,
    key_output: RecoveryKeyOutput | None = None,
) -> None:
    from megafs.cli import passphrase
    from megafs.volume.unlock import remember_keys, unlock

    credential = passphrase.credential(chosen.secrets, prompt=f"Passphrase for {url}")

    async def work(store: ObjectStore) -> None:
        found = await unlock(store, url, credential, chosen.settings)
        changed = await change(store, found.unlocked)
        _show_change(changed, as_json, key_output)
        await remember_keys(found, changed.unlocked)

    _with_store(url, chosen, work)


def _show_change(
    changed: Changed, as_json: bool, key_output: RecoveryKeyOutput | None = None
) -> None:
    """Print what was changed.  key_output: what has taken the new recovery key, if one was made."""
    if not as_json:
        output.show(changed.text)
        if key_output is not None:
            key_output.show_file()
        output.flush()
        return
    document = {
        "volume": changed.unlocked.header.fsid.hex(),
        "generation": changed.unlocked.header.generation,
        "slot": changed.slot_id.hex() if changed.slot_id else None,
        "text": changed.text,
    }
    if key_output is None:
        output.show_json({**document, "recovery_key": None})
    else:
        key_output.show_json(document)

"""`megafs format`: make a new volume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from megafs.cli import arguments, output
from megafs.cli.recovery_output import RecoveryKeyOutput
from megafs.config import DEFAULT_QUOTA, Parameters, parse_size
from megafs.errors import BadUsage

if TYPE_CHECKING:
    from megafs.volume.create import Formatted


@click.command(name="format", short_help="Make a new volume in a store.")
@click.argument("url")
@arguments.volume_options
@arguments.secret_options
@click.option(
    "--quota",
    default="50GB",
    show_default=True,
    help="The most bytes of file contents, 200GB for example; `none` for no limit.",
)
@click.option("--chunk-size", help="Bytes sealed as one unit: 16K to 1M, a power of two. [256K]")
@click.option(
    "--compression",
    type=click.Choice(["zstd", "none"]),
    default="zstd",
    show_default=True,
    help="Compress chunks where it helps.",
)
@click.option(
    "--deduplication",
    is_flag=True,
    help="Store equal chunks once. Whoever can place a file in the volume and watch the store can"
    " then tell whether you have the same bytes.",
)
@click.option(
    "--kdf",
    type=click.Choice(["default", "rfc9106", "low-memory"]),
    help="What trying one passphrase costs: 256 MiB and 1 s, 2 GiB and 4 s, or 64 MiB and 0.3 s."
    " [MEGAFS_KDF; default]",
)
@click.option("--label", default="", help="Name of the key slot, for megafs key list.")
@click.option("--no-recovery-key", is_flag=True, help="Make no recovery key.")
@arguments.new_recovery_key_option
@arguments.json_option
def command(
    url: str,
    options: tuple[str, ...],
    state_dir: Path | None,
    cache_dir: Path | None,
    quota: str,
    chunk_size: str | None,
    compression: str,
    deduplication: bool,
    kdf: str | None,
    label: str,
    no_recovery_key: bool,
    recovery_key_file: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a new volume at URL, which must be empty: file:///path or s3://bucket/prefix.

    A missing bucket or directory is created.  The recovery key that is printed, or written to a
    file, opens the volume without the passphrase: keep it away from this machine.
    """
    if no_recovery_key and recovery_key_file is not None:
        raise BadUsage("--no-recovery-key and --recovery-key-file exclude each other")
    parameters = _parameters(quota, chunk_size, compression, deduplication)
    chosen = arguments.mount_options(
        url, options, state_dir=state_dir, cache_dir=cache_dir, **given
    )

    from megafs.cli import passphrase

    key_output = RecoveryKeyOutput(recovery_key_file, as_json=as_json)
    credential = passphrase.credential(chosen.secrets, new=True, prompt="New passphrase")

    import trio

    from megafs.concurrency import run_interruptible
    from megafs.stores.stack import Traffic, open_store
    from megafs.volume.create import format_volume
    from megafs.volume.header import check_parameters

    settings = chosen.settings
    if settings.pack_size is not None:
        parameters = replace(parameters, pack_size=settings.pack_size)
    check_parameters(parameters)
    profile = kdf or os.environ.get("MEGAFS_KDF") or "default"

    def show(made: Formatted) -> None:
        if not as_json:
            _show(url, made)
            key_output.show_file()
            output.flush()
            return
        key_output.show_json(
            {
                "volume": made.fsid.hex(),
                "url": url,
                "generation": made.generation,
                "create_if_absent": made.create_if_absent,
                "parameters": _shown(made.parameters),
            }
        )

    async def make() -> None:
        store = open_store(url, settings.store_options, Traffic(patience=settings.deadline))
        try:
            with key_output.warning_if_void("megafs key list tells whether there is a volume"):
                await format_volume(
                    store,
                    credential,
                    parameters,
                    profile=profile,
                    label=label,
                    say=lambda text: None if as_json else output.note(text),
                    deliver=None if no_recovery_key else key_output.deliver,
                    on_new_keys=show,
                )
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await store.aclose()

    run_interruptible(make)
    if not as_json:
        output.show(f"Use it with:  megafs mount {url} MOUNTPOINT")


def _parameters(
    quota: str, chunk_size: str | None, compression: str, deduplication: bool
) -> Parameters:
    default = Parameters()
    size = default.chunk_size if chunk_size is None else parse_size(chunk_size)
    if size & (size - 1) or not 16 << 10 <= size <= 1 << 20:
        raise BadUsage(f"--chunk-size {chunk_size}: must be a power of two from 16K to 1M")
    limit: int | None = None
    if quota.lower() not in ("none", "unlimited"):
        limit = parse_size(quota)
        if limit < 1 << 20:
            raise BadUsage(f"--quota {quota}: at least 1M, or none")
    return Parameters(
        chunk_size=size, compression=compression, deduplication=deduplication, quota=limit
    )


def _shown(parameters: Parameters) -> dict[str, Any]:
    return {
        "quota": parameters.quota,
        "chunk_size": parameters.chunk_size,
        "pack_size": parameters.pack_size,
        "inline_limit": parameters.inline_limit,
        "compression": parameters.compression,
        "deduplication": parameters.deduplication,
    }


def _show(url: str, made: Formatted) -> None:
    quota = made.parameters.quota
    how = "as Mega gave everyone" if quota == DEFAULT_QUOTA else ""
    output.show(f"volume {made.fsid.hex()} made at {url}")
    output.show(
        *output.rows(
            [
                ("quota", f"{output.size(quota)}{f' ({how})' if how else ''}"),
                ("chunk size", f"{made.parameters.chunk_size >> 10} KiB"),
                ("compression", made.parameters.compression),
                ("deduplication", "on" if made.parameters.deduplication else "off"),
            ]
        )
    )
    if not made.create_if_absent:
        output.warn(
            "this store cannot create an object only if its name is free: one machine at a time"
            " can write to the volume"
        )

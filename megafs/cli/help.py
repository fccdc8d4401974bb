"""`megafs help`: what does not fit into --help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from megafs.cli import output

if TYPE_CHECKING:
    from megafs.stores.drivers import Driver

TOPICS = ("exit-codes", "options", "passphrase", "stores")


@click.command(name="help")
@click.argument("topic", type=click.Choice(TOPICS), required=False)
@click.pass_context
def command(ctx: click.Context, topic: str | None) -> None:
    """Show more help on TOPIC: exit-codes, options (what -o takes), passphrase (where it may come
    from), stores (where a volume can lie).
    """
    if topic == "exit-codes":
        from megafs.cli.main import EXIT_CODES

        output.show(*(f"{code:>4}  {text}" for code, text in EXIT_CODES))
        output.show(
            "",
            "mount.megafs, which mount(8) calls, uses mount(8)'s codes instead:"
            " 1 usage, 4 bug, 8 interrupted, 32 failed.",
        )
    elif topic == "options":
        from megafs.mount.option_table import OPTIONS
        from megafs.stores.drivers import DRIVERS

        kinds = (
            ("setting", "For the volume"),
            ("secret", "Secrets"),
            ("mount", "For the mount"),
            ("kernel", "For the kernel"),
            ("ignored", "Taken, without a meaning here"),
        )
        for kind, title in kinds:
            output.show(f"{title}:")
            for option in (o for o in OPTIONS.values() if o.kind == kind):
                value = f"={option.example}" if option.value is not None else ""
                output.show(f"  {option.name}{value}", f"      {option.text.replace('`', '')}")
            output.show("")
        for driver in DRIVERS.values():
            if driver.described:
                output.show(f"Of {driver.prefix} stores:")
            for own in driver.described:
                text = own.text.replace("`", "")
                output.show(f"  {own.name}={own.example}", f"      {text}")
    elif topic == "stores":
        from megafs.stores.drivers import DRIVERS

        output.show("A volume lies at a URL of one of these kinds:")
        for driver in DRIVERS.values():
            if driver.holds_volumes and not driver.for_tests:
                output.show(*_kind(driver))
        output.show("", "These are only read, as the files that they hold:")
        for driver in DRIVERS.values():
            if not driver.holds_volumes:
                output.show(*_kind(driver))
        output.show("  https://mega.nz/folder/...#...", "      links of MEGA to folders and files")
        output.show("", "megafs help options says what the options do.")
    elif topic == "passphrase":
        from megafs.cli import passphrase

        output.show(*(passphrase.__doc__ or "").strip().splitlines())
    else:
        assert ctx.parent is not None
        output.show(*ctx.parent.get_help().splitlines(), "")
        output.show(f"megafs help TOPIC, with TOPIC one of {', '.join(TOPICS)}")


def _kind(driver: Driver) -> list[str]:
    names = ", ".join(sorted(driver.options)) or "none"
    lines = [f"  {driver.example}", f"      options: {names}"]
    if driver.login is not None:
        lines.append(f"      log in with: megafs login {driver.example}")
    return lines

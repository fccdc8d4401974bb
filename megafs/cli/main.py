"""The `megafs` command: which subcommands there are, and the one place where errors become exit
codes.

A command is one module with one click command (or group) in it, named in `COMMANDS`; it is imported
when it is called, so that `megafs --help` and `megafs status` start quickly.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

import megafs
from megafs import garbage, logs
from megafs.cli import ending, output
from megafs.errors import BadUsage, MegafsError
from megafs.hardening import protect_memory
from megafs.printable import indented

#: name: (module, what it does)
COMMANDS = {
    "format": ("megafs.cli.format", "Make a new volume in a store."),
    "mount": ("megafs.cli.mount", "Mount a volume on a directory."),
    "umount": ("megafs.cli.umount", "Bring everything to the store, then unmount."),
    "status": ("megafs.cli.status", "Show how the mounts are."),
    "login": ("megafs.cli.login", "Log in to the service of a store."),
    "logout": ("megafs.cli.logout", "Forget a login, and end it at the service."),
    "key": ("megafs.cli.key", "Who can open a volume: list, add, remove, change, recover, rotate."),
    "cache": ("megafs.cli.cache", "Show or clear the cache of a mount or volume."),
    "pin": ("megafs.cli.pin", "Keep a subtree readable without the store."),
    "unpin": ("megafs.cli.unpin", "Let a pinned subtree be evicted again."),
    "fsck": ("megafs.cli.fsck", "Check a volume, and repair it."),
    "scrub": ("megafs.cli.scrub", "Read everything in the store and verify it."),
    "gc": ("megafs.cli.gc", "Remove from the store what nothing needs any more."),
    "salvage": ("megafs.cli.salvage", "Export what is left of a damaged volume."),
    "snapshot": ("megafs.cli.snapshot", "Names for moments: create, list, delete."),
    "log": ("megafs.cli.log", "Show what happened to a file, or to the whole volume."),
    "restore": ("megafs.cli.restore", "Bring a file or directory back as it was."),
    "share": ("megafs.cli.share", "Links: give a file or folder to anybody."),
    "get": ("megafs.cli.get", "Fetch what lies behind a link."),
    "import": ("megafs.cli.import_files", "Copy files from MEGA into a volume."),
    "undelete": ("megafs.cli.undelete", "Show what was removed; bring it back."),
    "help": ("megafs.cli.help", "More help: exit-codes, options, passphrase."),
}

EXIT_CODES = (
    (0, "done"),
    (1, "an error without a code of its own, or a bug"),
    (2, "the command line, an option or a URL is wrong"),
    (3, "gc, key reencrypt: done as far as possible now; run it again later"),
    (4, "fsck, scrub, salvage, import: damaged or missing data (fsck: 1 if all was repaired)"),
    (10, "there is no megafs volume at that URL"),
    (11, "the volume needs a newer megafs"),
    (12, "wrong passphrase, key file or recovery key"),
    (13, "the store, or this machine, denies access"),
    (14, "the store does not answer, or its bucket or directory does not exist"),
    (15, "the store or a local disk is full"),
    (16, "something in the store, or on disk, is damaged or missing"),
    (17, "the store shows an older or another history than this machine has seen"),
    (18, "a volume or a mount is there already"),
    (19, "in use"),
    (32, "the mount could not be made"),
    (130, "interrupted"),
)

EPILOG = "Exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES) + "."


class Commands(click.Group):
    """The subcommands of `COMMANDS`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with garbage.paused():
            command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f" ({', '.join(COMMANDS)})"
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(megafs.__version__, message="megafs %(version)s")
@click.option("--debug", is_flag=True, help="Log in detail, and show where errors come from.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Mount end-to-end-encrypted cloud storage as a local directory.

    \b
    megafs format s3://bucket/prefix -o endpoint=https://...   make a volume, once
    megafs mount  s3://bucket/prefix ~/cloud -o endpoint=...   use it
    megafs umount ~/cloud                                      bring everything to the store

    The store sees only sealed objects.  The same volume can be mounted on several machines.
    """
    ctx.obj = {"debug": debug or bool(os.environ.get("MEGAFS_DEBUG"))}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    protect_memory()
    ending.open_missing_outputs()
    args = list(sys.argv[1:] if argv is None else argv)
    # Or what is logged would be printed by `logging` itself, as it is; a mount chooses another way.
    logs.set_up("terminal", debug=_is_debugging(args))
    sys.exit(run(args))


def run(args: list[str]) -> int:
    """Run the command with *args* and return its exit code."""
    debug = _is_debugging(args)
    as_json = "--json" in args
    is_bare = not args  # click takes them out of the list
    output.document_is_out = False
    try:
        # Not cli.main(), which has its own way with errors and prints an empty line after Ctrl-C.
        with cli.make_context("megafs", args) as ctx:
            code = cli.invoke(ctx)
        output.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exc:  # after --help and --version
        return _flushed(exc.exit_code, as_json=as_json, debug=debug)
    except BrokenPipeError:
        # Whoever read our output has left: nothing to tell, and nobody to tell it to.
        output.discard(sys.stdout)
        return MegafsError.exit_code
    except OSError as exc:
        # Help and version are printed by click.
        by_click = not args or {"--help", "-h", "--version"} & set(args)
        lost = output.OutputLost(exc) if by_click and exc.filename is None else exc
        return report_error(lost, as_json=as_json, debug=debug)
    except click.Abort:
        return report_error(KeyboardInterrupt(), as_json=as_json, debug=debug)
    except click.ClickException as exc:
        if is_bare:
            output.usage(exc.format_message())
            return BadUsage.exit_code
        return report_error(BadUsage(_usage_text(exc)), as_json=as_json, debug=debug)
    except BaseException as exc:  # noqa: ASYNC103  (nothing here is run by trio)
        if isinstance(exc, SystemExit | GeneratorExit):
            raise
        return report_error(exc, as_json=as_json, debug=debug)  # noqa: ASYNC104


def _is_debugging(args: Sequence[str]) -> bool:
    return "--debug" in args or bool(os.environ.get("MEGAFS_DEBUG"))


def report_error(exc: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print *exc* in one line for the user; return the exit code."""
    ends = ending.of(exc)
    if ends.exit_code == ending.INTERRUPTED:
        if sys.stderr.isatty():
            output.line_ends()  # of the prompt, or the ^C that the terminal shows
        output.note(ends.text)
        return ends.exit_code
    if debug:
        for line in indented("".join(traceback.format_exception(exc))):
            sys.stderr.write(f"{line}\n")
    if as_json and not output.document_is_out:
        document = {"text": ends.text, "exit_code": ends.exit_code, "kind": ends.kind}
        try:
            output.show_json({"error": document})
        except (BrokenPipeError, output.OutputLost):
            output.note(ends.text)
        return ends.exit_code
    output.note(ends.text)
    if ends.is_bug and not debug:
        output.note("this is a bug; megafs --debug ... shows where it happened")
    return ends.exit_code


def _flushed(code: int, *, as_json: bool, debug: bool) -> int:
    """Return *code*, or that of the error if stdout does not take what click has printed."""
    try:
        output.flush()
        return code
    except (BrokenPipeError, output.OutputLost) as exc:
        return report_error(exc, as_json=as_json, debug=debug)


def _usage_text(exc: click.ClickException) -> str:
    ctx = exc.ctx if isinstance(exc, click.UsageError) else None
    if ctx is not None and isinstance(ctx.command, click.Group) and exc.message == ctx.get_help():
        # A group of commands, and none of them named; click has a class for it since 8.2.
        names = ", ".join(ctx.command.list_commands(ctx))
        return f"{ctx.command_path} needs a command: {names} (see {ctx.command_path} --help)"
    text = exc.format_message().rstrip(".")
    text = text[:1].lower() + text[1:]
    if len(text) > 400:  # with a whole value of thousands of characters in it
        text = f"{text[:200]} ... {text[-100:]}"
    return f"{text} (see {ctx.command_path} --help)" if ctx is not None else text

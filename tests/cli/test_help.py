"""Every command explains itself, quickly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from megafs.cli.main import COMMANDS, EXIT_CODES, cli, run
from megafs.errors import MegafsError
from megafs.stores.drivers import DRIVERS


def commands() -> list[list[str]]:
    """Every command and subcommand, as words."""
    found: list[list[str]] = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, sub] for sub in command.commands]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_and_option_has_help(words: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"])
    assert shown.exit_code == 0
    assert shown.output.startswith("Usage: ")
    ctx = click.Context(cli)
    command: click.Command | None = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(ctx, word)
    assert command is not None
    assert command.help, words
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, (words, param.name)


def test_the_list_of_commands_is_shown_without_importing_them() -> None:
    program = (
        "import sys\n"
        "from megafs.cli.main import run\n"
        "run(['--help'])\n"
        "heavy = {'trio', 'httpx', 'botocore', 'cryptography', 'pyfuse3', 'apsw', 'rich'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


def test_status_needs_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from megafs.cli.main import run\n"
        "run(['status'])\n"
        "heavy = {'trio', 'httpx', 'botocore', 'cryptography', 'pyfuse3', 'apsw', 'rich'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_exit_code_of_an_error_is_documented() -> None:
    def below(kind: type[MegafsError]) -> set[int]:
        return {kind.exit_code}.union(*(below(sub) for sub in kind.__subclasses__()))

    assert below(MegafsError) <= {code for code, _ in EXIT_CODES}
    shown = CliRunner().invoke(cli, ["help", "exit-codes"])
    for code, text in EXIT_CODES:
        assert f"{code:>4}  {text}" in shown.output


def test_help_topics() -> None:
    assert "cache_size=20G" in CliRunner().invoke(cli, ["help", "options"]).output
    assert "MEGAFS_PASSPHRASE" in CliRunner().invoke(cli, ["help", "passphrase"]).output
    stores = CliRunner().invoke(cli, ["help", "stores"]).output
    for driver in DRIVERS.values():
        assert (driver.example in stores) is not driver.for_tests
        assert driver.for_tests or all(option in stores for option in driver.options)
        says_login = f"log in with: megafs login {driver.example}\n" in stores
        assert says_login is (driver.login is not None and not driver.for_tests)
    assert "Usage: " in CliRunner().invoke(cli, ["help"]).output


def test_version() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output.startswith("megafs ")


def test_the_command_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    out, said = capsys.readouterr()
    assert out == "" and said.startswith("Usage: megafs [OPTIONS] COMMAND") and "\\n" not in said


@pytest.mark.parametrize("group", ["key", "snapshot", "share", "cache"])
def test_a_group_alone_names_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([group]) == 2
    out, said = capsys.readouterr()
    assert out == "" and said.startswith(f"megafs: megafs {group} needs a command: ")
    assert (said.count("\n") == 1 and "\\n" not in said and " list" in said) or group == "cache"


def test_every_command_option_and_exit_code_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    sections = re.split(r"^##+ ", text, flags=re.MULTILINE)
    for words in commands():
        section = next(s for s in sections if s.startswith(f"megafs {' '.join(words)}\n"))
        command: click.Command | None = cli
        for word in words:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(cli), word)
        assert command is not None
        for param in command.params:
            if isinstance(param, click.Option):
                assert all(f"`{name}`" in section for name in param.opts), (words, param.opts)
    for code, sentence in EXIT_CODES:
        assert f"| {code} | {sentence} |" in text

"""The distribution's name is ours: `megafs` in the Python package index belongs to others."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if name]
    paths = [ROOT / name for name in names] or [
        path
        for pattern in (
            "*.md",
            "contrib/**/*",
            "docs/**/*",
            "megafs/**/*.py",
            "tools/*",
            "Makefile",
        )
        for path in ROOT.glob(pattern)
    ]
    return [path for path in paths if path.is_file() and path != Path(__file__)]


def test_no_text_says_to_install_somebody_elses_package() -> None:
    suggestion = re.compile(
        r"(pipx?|uv|uvx)\b[^\n]*\b(install|add|run)\b[^\n]*[\s\"']megafs(?![-\w/.@])"
    )
    found = []
    for path in texts():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path}: {match[0]}" for match in suggestion.finditer(text)]
    assert len(texts()) > 20
    assert found == []
    # That the pattern can find one.
    assert suggestion.search("/opt/megafs/bin/pip install megafs")
    assert suggestion.search("uv tool install --quiet 'megafs'")
    assert not suggestion.search("pip install megafs-fuse")


def test_the_distribution_has_a_name_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "megafs-fuse"
    import megafs

    assert importlib.metadata.version("megafs-fuse") == megafs.__version__

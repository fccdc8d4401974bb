"""The table of branches at the end of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.branch_coverage import Counts, table
from tests.codebase.sources import ROOT


def test_the_table_adds_up_by_package() -> None:
    rows = table(
        [
            ("/x/megafs/__init__.py", Counts(1, 1, 0, 0)),
            ("/x/megafs/fs/a.py", Counts(10, 5, 4, 1)),
            ("/x/megafs/fs/b.py", Counts(30, 25, 4, 3)),
        ]
    )
    assert [row.split() for row in rows[1:]] == [
        ["megafs", "1", "100%", "0", "100%"],
        ["megafs/fs", "40", "75%", "8", "50%", "a.py", "(3)"],
        ["all", "41", "76%", "8", "50%", "fs/a.py", "(3)"],
    ]


def test_it_is_printed_and_pytests_own_line_stays_the_last(tmp_path: Path) -> None:
    """Also what runs at import is counted: the plugin begins before megafs is imported."""
    (tmp_path / "conftest.py").write_text("import megafs.errors, megafs.private_files\n")
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "def test_one(): assert True\n"
        "@pytest.mark.slow\n"
        "def test_slow(): import megafs.tree.inode\n"
        "def test_after(): import megafs.crypto.aead\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: takes long\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.branch_coverage", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "3 passed in" in lines[-1]
    run = {
        words[0]: int(words[2].rstrip("%"))
        for words in map(str.split, lines)
        if words[1:2] and words[0].startswith("megafs") and words[1].isdigit()
    }
    assert run["megafs/tree"] == 0
    assert run["megafs/crypto"] > 0
    assert 10 <= run["megafs"] < 50  # those two, of 18 modules

"""The import contracts in pyproject.toml refuse what they are there to refuse.

Each test plants a module that breaks one contract into a copy of the package, and lets
lint-imports judge the copy.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.codebase.sources import ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its contracts, to plant modules in."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "megafs", tmp_path / "megafs", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def verdicts(copy: Path) -> tuple[dict[str, str], str]:
    """({contract: "KEPT" or "BROKEN"}, all that lint-imports said) of the copy."""
    command = [str(LINT_IMPORTS), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    found = dict(re.findall(r"^(.+) (KEPT|BROKEN)$", done.stdout, re.MULTILINE))
    assert found, done.stdout + done.stderr
    return found, done.stdout + done.stderr


PROBES = [
    ("stores/cloud.py", "import httpx", "only stores.http imports httpx and certifi"),
    ("stores/cloud.py", "import certifi", "only stores.http imports httpx and certifi"),
    ("stores/shelf.py", "import diskcache", "only the disk cache imports diskcache"),
    ("stores/cloud.py", "from diskcache import Cache", "only the disk cache imports diskcache"),
    ("stores/s3/driver2.py", "import botocore.session", "only S3's credentials import botocore"),
    ("stores/login/shelf.py", "import keyring", "only stores.login imports keyring"),
    ("mount/second.py", "import pyfuse3", "only the FUSE adapter imports pyfuse3"),
    (
        "chunks/cipher.py",
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM",
        "ciphers live in crypto, and those of MEGA's own protocol in one module",
    ),
    ("fs/query.py", "import apsw", "only who owns a database imports apsw"),
    (
        "jobs/show.py",
        "from rich.table import Table",
        "only the command line imports click and rich",
    ),
    ("tree/wait.py", "import trio", "tree and crypto are synchronous"),
    ("stores/peek.py", "import megafs.crypto", "stores cannot reach our keys"),
    ("tree/upward.py", "import megafs.volume.open", "layers point down"),
    ("journal/sideways.py", "import megafs.chunks.store", "layers point down"),
    # A module that no layer names.
    ("newcomer.py", "import sys", "layers point down"),
]


@pytest.mark.parametrize(("module", "line", "contract"), PROBES)
def test_a_module_that_breaks_a_contract_is_refused(
    copy: Path, module: str, line: str, contract: str
) -> None:
    planted = copy / "megafs" / module
    assert not planted.exists(), f"the probe {module} would overwrite a module"
    assert planted.parent.is_dir(), f"{module}: was the folder renamed?"
    # The import may stand in a function, which is where late imports stand.
    planted.write_text(f"def late() -> None:\n    {line}\n")
    found, said = verdicts(copy)
    assert found[contract] == "BROKEN", said
    name = planted.relative_to(copy).with_suffix("").as_posix().replace("/", ".")
    assert name in said or planted.stem in said


def test_every_contract_has_a_probe(copy: Path) -> None:
    found, _said = verdicts(copy)
    assert {contract for _module, _line, contract in PROBES} == set(found)

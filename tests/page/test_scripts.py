"""The page's scripts: their types, and the vectors of links under Node."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STATIC = HERE.parent.parent / "megafs" / "page" / "static"
TSC = HERE / "tools" / "node_modules" / ".bin" / "tsc"

#: What lies in vendor/, as npm has it: fzstd 0.1.1 esm/index.mjs, hash-wasm 4.13.0 dist/.
VENDORED = {
    "blake3.js": "a474fa8dfc7fb5db92ca5f2534bef28bcac02a19c5b622cd27852444f50ff9dc",
    "fzstd.js": "1a901fc5a58c349bbdb4f2aa1e688637ef56891ec58243a9f0cd863166b0d2a4",
}


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no node here")
    return found


def test_the_scripts_have_types() -> None:
    if not TSC.exists():
        pytest.skip("typescript could not be had")
    done = subprocess.run(
        [node(), str(TSC), "-p", str(HERE / "tsconfig.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_page_reads_what_the_command_reads(tmp_path: Path) -> None:
    page = tmp_path / "page"
    shutil.copytree(STATIC, page)
    (page / "package.json").write_text('{"type": "module"}')
    scripts = tmp_path / "tests" / "page"
    scripts.mkdir(parents=True)
    shutil.copy(HERE / "vectors.test.js", scripts / "vectors.test.mjs")
    (tmp_path / "tests" / "vectors").symlink_to(HERE.parent / "vectors")
    done = subprocess.run(
        [node(), "--test", "--test-reporter=tap", str(scripts / "vectors.test.mjs")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PAGE": str(page)},
    )
    assert done.returncode == 0, done.stdout
    assert "\n# pass 14\n" in done.stdout


@pytest.mark.parametrize("name", sorted(VENDORED))
def test_what_others_wrote_is_what_they_published(name: str) -> None:
    assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == VENDORED[name]


def test_nothing_comes_from_anybody_else() -> None:
    """No address of another server stands in the page, but in comments and licences."""
    for path in STATIC.rglob("*"):
        if path.suffix not in (".js", ".html", ".css") or path.parent.name == "vendor":
            continue
        lines = [line.partition("//")[0] for line in path.read_text().splitlines()]
        if path.suffix != ".js":
            lines = path.read_text().splitlines()
        for line in lines:
            assert 'src="http' not in line and "url(http" not in line and 'import("http' not in line
    page = (STATIC / "index.html").read_text()
    assert "default-src 'none'" in page and "no-referrer" in page
    assert "unsafe-inline" not in page and "unsafe-eval'" not in page.replace(
        "wasm-unsafe-eval", ""
    )

"""Credentials are found where every AWS tool finds them, renewed in time, and never asked twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from megafs.concurrency import in_place
from megafs.errors import BadStore, Denied
from megafs.stores.s3.credentials import Chain
from megafs.stores.s3.sigv4 import Credentials
from tests.fakes.proxy import Answer, proxying


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without credentials, and an environment without any."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BOTO_CONFIG", str(tmp_path / "boto"))
    (tmp_path / ".aws").mkdir()
    return tmp_path


def profile(home: Path, name: str, **values: str) -> None:
    with (home / ".aws" / "credentials").open("a") as file:
        file.write(f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in values.items()))


async def test_the_environment_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(home, "default", aws_access_key_id="FILE", aws_secret_access_key="s")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert await Chain().current() == Credentials("ENV", "secret")

    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert await Chain().current() == Credentials("ENV", "secret", "token")


async def test_a_named_profile_beats_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(home, "work", aws_access_key_id="W", aws_secret_access_key="s", aws_session_token="t")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert await Chain("work").current() == Credentials("W", "s", "t")


async def test_profiles_of_the_usual_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(home, "default", aws_access_key_id="D", aws_secret_access_key="s")
    profile(home, "other", aws_access_key_id="O", aws_secret_access_key="s")
    assert (await Chain().current()).access_key == "D"

    monkeypatch.setenv("AWS_PROFILE", "other")
    assert (await Chain().current()).access_key == "O"

    with pytest.raises(BadStore, match=r"absent.*~/.aws/config"):
        await Chain("absent").current()


async def test_nothing_found_is_denied_with_advice_and_without_a_wait(home: Path) -> None:
    with trio.fail_after(3), pytest.raises(Denied, match=r"AWS_ACCESS_KEY_ID.*profile="):
        await Chain(at_aws=False).current()


@pytest.fixture
def issuing(home: Path) -> Callable[[float], Path]:
    """A credential_process that counts its runs and whose keys live some seconds."""
    runs = home / "runs"

    def living(seconds: float) -> Path:
        expires = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        answer = {"Version": 1, "SecretAccessKey": "s", "Expiration": expires}
        script = home / "issue.py"
        script.write_text(
            f"import json\nopen({str(runs)!r}, 'a').write('x')\n"
            f"n = len(open({str(runs)!r}).read())\n"
            f"print(json.dumps({answer!r} | {{'AccessKeyId': f'KEY{{n}}'}}))\n"
        )
        (home / ".aws" / "config").write_text(
            f"[default]\ncredential_process = {sys.executable} {script}\n"
        )
        return runs

    return living


async def test_what_expires_is_renewed_before_it_does(issuing: Callable[[float], Path]) -> None:
    runs = issuing(5)  # botocore renews within the last minutes
    chain = Chain()
    assert (await chain.current()).access_key == "KEY2"  # once found, at once renewed
    issuing(3600)
    assert (await chain.current()).access_key == "KEY3"
    assert (await chain.current()).access_key == "KEY3"
    assert len(runs.read_text()) == 3


async def test_with_less_than_15_minutes_left_they_are_renewed_once_and_not_per_request(
    issuing: Callable[[float], Path], autojump_clock: trio.testing.MockClock
) -> None:
    runs = issuing(600)  # a service that gives no more than ten minutes
    chain = Chain()
    with in_place():
        first = await chain.current()
        before = len(runs.read_text())
        for _ in range(50):
            assert await chain.current() == first
        assert len(runs.read_text()) == before

        await trio.sleep(61)
        issuing(3600)
        newer = await chain.current()
        assert newer != first
        for _ in range(50):
            assert await chain.current() == newer
        await trio.sleep(61)
        assert await chain.current() == newer
        assert len(runs.read_text()) == before + 1


async def test_credentials_that_cannot_be_renewed_are_used_to_their_end(
    issuing: Callable[[float], Path], home: Path, autojump_clock: trio.testing.MockClock
) -> None:
    issuing(600)
    chain = Chain()
    with in_place():
        first = await chain.current()
        (home / "issue.py").write_text("raise SystemExit(1)\n")
        await trio.sleep(61)
        for _ in range(3):
            assert await chain.current() == first


ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<Credentials><AccessKeyId>ROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey>
<SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
<AssumedRoleUser><AssumedRoleId>A:b</AssumedRoleId><Arn>arn:aws:sts::1:assumed-role/a/b</Arn>
</AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>"""


@pytest.mark.parametrize(
    ("given", "in_profile", "used"),
    [
        ("eu-south-9", "", "eu-south-9"),
        ("eu-south-9", "ap-east-1", "eu-south-9"),
        ("", "ap-east-1", "ap-east-1"),
        ("", "", "us-east-1"),
    ],
)
async def test_a_role_is_assumed_in_the_region_that_was_given(
    home: Path, monkeypatch: pytest.MonkeyPatch, given: str, in_profile: str, used: str
) -> None:
    profile(home, "base", aws_access_key_id="BASE", aws_secret_access_key="s")
    region = f"region = {in_profile}\n" if in_profile else ""
    (home / ".aws" / "config").write_text(
        f"[profile role]\nrole_arn = arn:aws:iam::1:role/a\nsource_profile = base\n{region}"
    )
    async with proxying("http://127.0.0.1:9") as tokens:
        tokens.always(Answer(200, headers=(("content-type", "text/xml"),), body=ASSUMED.encode()))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", tokens.endpoint)
        found = await Chain("role", region=given).current()
    assert found == Credentials("ROLE", "s", "t")
    ((request, _),) = tokens.seen
    assert f"/{used}/sts/" in request.headers["authorization"]


TWO = """
# two
[a]
aws_access_key_id=A
aws_secret_access_key=s
[b]
aws_access_key_id = B
aws_secret_access_key = s
aws_session_token = t
"""


@pytest.mark.parametrize(
    ("text", "section", "found"),
    [
        ("AK:secret/+=", "", Credentials("AK", "secret/+=")),
        ("AK:secret\n", "any", Credentials("AK", "secret")),
        (
            "[default]\naws_access_key_id = A\naws_secret_access_key=s:s",
            "",
            Credentials("A", "s:s"),
        ),
        (
            TWO,
            "b",
            Credentials("B", "s", "t"),
        ),
    ],
)
async def test_a_file_of_keys(
    home: Path, monkeypatch: pytest.MonkeyPatch, text: str, section: str, found: Credentials
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    path = home / "keys"
    path.write_text(text)
    path.chmod(0o600)
    assert await Chain(section, file=path).current() == found


@pytest.mark.parametrize(
    ("text", "mode", "error", "says"),
    [
        ("AK:HIDDEN", 0o640, BadStore, "can be read by others: chmod 600"),
        ("AK:HIDDEN", 0o604, BadStore, "can be read by others"),
        ("HIDDEN", 0o600, BadStore, "not a file of the AWS form"),
        ("AK:HIDDEN:more", 0o600, BadStore, "not a file of the AWS form"),
        (
            "[other]\naws_access_key_id=HIDDEN\n",
            0o600,
            Denied,
            r"no aws_access_key_id.*\[default\]",
        ),
        ("", 0o600, Denied, "no aws_access_key_id"),
        ("AK:HIDDEN\u00c9", 0o600, BadStore, "not text in ASCII"),
        (None, 0, BadStore, "No such file"),
    ],
)
async def test_what_is_no_file_of_keys_is_said_without_its_contents(
    home: Path, text: str | None, mode: int, error: type[Exception], says: str
) -> None:
    path = home / "keys"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(error, match=f"credentials_file={path}.*{says}") as caught:
        await Chain(file=path).current()
    assert "HIDDEN" not in str(caught.value)


async def test_at_other_endpoints_the_machines_role_is_not_asked_for_and_that_is_said(
    home: Path,
) -> None:
    with pytest.raises(Denied, match=r"instance metadata.*at AWS's endpoints only"):
        await Chain(at_aws=False).current()


async def test_many_requests_at_once_read_once(issuing: Callable[[float], Path]) -> None:
    runs = issuing(3600)
    chain = Chain()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(chain.current)
    assert len(runs.read_text()) == 1


async def test_refused_credentials_are_looked_for_again_but_not_all_the_time(
    home: Path, autojump_clock: trio.testing.MockClock
) -> None:
    profile(home, "default", aws_access_key_id="OLD", aws_secret_access_key="s")
    chain = Chain(at_aws=False)
    with in_place():
        old = await chain.current()
        (home / ".aws" / "credentials").unlink()
        profile(home, "default", aws_access_key_id="NEW", aws_secret_access_key="s")

        assert not await chain.renewed(old), "just read"
        await trio.sleep(10)
        assert await chain.renewed(old)
        new = await chain.current()
        assert new.access_key == "NEW"
        assert await chain.renewed(old), "another request has done it"

        await trio.sleep(10)
        assert not await chain.renewed(new), "the same again"
        (home / ".aws" / "credentials").unlink()
        await trio.sleep(10)
        assert not await chain.renewed(new), "nothing there any more"
        assert await chain.current() == new


def test_keys_in_the_environment_need_no_botocore(home: Path) -> None:
    """It takes 0.15 s and 25 MiB to import."""
    code = (
        "import sys, trio\nfrom megafs.stores.stack import open_driver\n"
        "trio.run(open_driver('s3://bucket')._credentials.current)\n"
        "print([m for m in sys.modules if m.partition('.')[0] == 'botocore'])"
    )
    environment = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "S"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []

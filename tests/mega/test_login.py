"""Logging in: both kinds of password, a second factor, and a server that lies."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest

from megafs.errors import Corrupt, Denied, MegafsError
from megafs.mega import login
from megafs.mega.ciphers import password_keys_v2
from megafs.mega.login import LoginRefused, PrivateNumbers, opened_session
from megafs.mega.session import MegaSession
from megafs.stores.urls import Location
from tests.mega.conftest import MAIL, PASSWORD
from tests.services.mega import reference
from tests.services.mega.server import MegaServer, Owner

HERE = Location("", "")


class Typed:
    """Answers questions from a list; keeps what was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, bool]] = []

    async def __call__(self, question: str, *, secret: bool = False) -> str:
        self.asked.append((question, secret))
        return self.answers.pop(0)


def options(mega: MegaServer, **more: str) -> dict[str, str]:
    return {"api": mega.url, **more}


@pytest.mark.parametrize("version", [1, 2])
async def test_a_session_comes_of_it(mega: MegaServer, version: int) -> None:
    owner = mega.add_account(MAIL, PASSWORD, version=version)
    ask = Typed(f" {MAIL.upper()} ", PASSWORD)
    session = MegaSession.parse(await login.log_in(HERE, options(mega), ask))
    assert [secret for _, secret in ask.asked] == [False, True]
    assert session.key == owner.account.master
    assert (session.user, session.mail) == (owner.account.handle, MAIL)
    assert session.sid in mega.state.sessions
    assert PASSWORD not in repr(session) and session.sid not in repr(session)
    await login.log_out(HERE, options(mega), session.text())
    assert session.sid not in mega.state.sessions


async def test_the_mail_may_be_an_option(mega: MegaServer, owner: Owner) -> None:
    session = await login.log_in(HERE, options(mega, account=MAIL), Typed(PASSWORD))
    assert MegaSession.parse(session).mail == MAIL


async def test_a_second_factor_is_asked_for_when_it_is_wanted(mega: MegaServer) -> None:
    secret = os.urandom(20)
    mega.add_account(MAIL, PASSWORD, totp=secret)
    code = reference.totp(secret, mega.clock())
    ask = Typed(MAIL, PASSWORD, f"{code[:3]} {code[3:]}")
    await login.log_in(HERE, options(mega), ask)
    assert ask.asked[-1] == ("Code of the second factor: ", True)
    wrong = f"{(int(code) + 1) % 1_000_000:06}"
    with pytest.raises(LoginRefused):
        await login.log_in(HERE, options(mega), Typed(MAIL, PASSWORD, wrong))


async def test_a_wrong_password_and_no_account_are_one_error(
    mega: MegaServer, owner: Owner
) -> None:
    said = []
    for mail, password in ((MAIL, "wrong"), ("nobody@example.org", PASSWORD)):
        with pytest.raises(LoginRefused) as caught:
            await login.log_in(HERE, options(mega), Typed(mail, password))
        said.append(str(caught.value))
    assert len(set(said)) == 1 and PASSWORD not in said[0]


async def test_a_blocked_account_is_asked_nothing_more(mega: MegaServer, owner: Owner) -> None:
    owner.account.blocked = True
    with pytest.raises(Denied, match="has blocked"):
        await login.log_in(HERE, options(mega), Typed(MAIL, PASSWORD))
    assert mega.commands == ["us0", "us"]


async def test_proof_of_work_for_the_login(mega: MegaServer, owner: Owner) -> None:
    mega.hashcash["us"] = 255
    await login.log_in(HERE, options(mega), Typed(MAIL, PASSWORD))
    assert mega.solved == 1 and mega.logins == 1


# What a server might answer to learn something


SALT = bytes(16)
KEYS = password_keys_v2(PASSWORD, SALT)
MASTER = bytes(range(16))
USER = "abcdefghijk"


def answer(**changes: Any) -> dict[str, Any]:
    """What an honest server answers, but for what is changed: sid, p, q, d, u of the RSA key."""
    key = reference.private_key()
    sid = changes.get("sid", b"\x01" * 16 + USER.encode() + b"\x02" * 16)
    numbers = [key.p, key.q, key.d, pow(key.p, -1, key.q)]
    for i, name in enumerate("pqdu"):
        numbers[i] = changes.get(name, lambda n: n)(numbers[i])
    private = reference.padded(b"".join(map(reference.mpi, numbers))) + changes.get("tail", b"")
    made: dict[str, Any] = {
        "k": reference.b64(reference.ecb(KEYS.key, changes.get("master", MASTER))),
        "privk": reference.b64(reference.ecb(changes.get("master", MASTER), private)),
        "csid": reference.sealed_session(sid, key),
        "u": USER,
    }
    return made | dict(changes.get("fields", {}))


def test_an_honest_answer_opens() -> None:
    session = opened_session(answer(), KEYS, MAIL)
    assert (session.key, session.user) == (MASTER, USER)


def other_exponent() -> int:
    """One that has an inverse, but not the account's."""
    key = reference.private_key()
    return pow((1 << 89) - 1, -1, math.lcm(key.p - 1, key.q - 1))


Number = Callable[[int], int]
LIES: list[dict[str, Any]] = [
    {"sid": b"\x01" * 16 + b"lmnopqrstuv" + b"\x02" * 16},  # another account's session
    {"sid": b"\x01" * 43},
    {"p": lambda n: n + 2},
    {"q": lambda n: n + 2},
    {"u": lambda n: n + 1},  # what the attack of 2022 changes
    {"u": lambda n: 3},
    {"d": lambda n: n + 2},
    {"d": lambda n: 3},
    {"d": lambda n: other_exponent()},
    {"p": lambda n: 7},
    {"tail": bytes(16)},
    {"fields": {"k": "AAAA"}},
    {"fields": {"k": reference.b64(bytes(32))}},
    {"fields": {"privk": ""}},
    {"fields": {"csid": reference.b64(b"\x00\x08\x01")}},
    {"fields": {"csid": None}},
    {"fields": {"u": USER[:-1]}},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_every_lie_is_one_error(lie: dict[str, Any]) -> None:
    with pytest.raises(LoginRefused) as caught:
        opened_session(answer(**lie), KEYS, MAIL)
    assert str(caught.value) == str(LoginRefused())
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("found", [None, [], 0, "x", {}, {"k": 1}])
def test_an_answer_of_another_kind(found: Any) -> None:
    with pytest.raises(LoginRefused):
        opened_session(found, KEYS, MAIL)


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.keys() & set("pqdu")], ids=str)
def test_a_private_key_that_is_none_opens_nothing(lie: dict[str, Any]) -> None:
    """It is refused before it is used, not because of what came out."""
    closed = reference.unb64(answer(**lie)["privk"])
    with pytest.raises(ValueError):
        PrivateNumbers.parse(reference.ecb(MASTER, closed, opening=True))


@pytest.mark.parametrize("cut", [0, 1, 2, 50, 200, 600])
def test_a_private_key_that_is_cut_short(cut: int) -> None:
    data = reference.packed_private_key(reference.private_key())
    with pytest.raises(ValueError):
        PrivateNumbers.parse(data[:cut])


def test_a_session_that_is_none_is_not_quoted() -> None:
    for text in ("", "{}", '{"sid": "secret", "key": "!", "user": "u", "mail": "m"}', "[1]"):
        with pytest.raises(Corrupt) as caught:
            MegaSession.parse(text)
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value, MegafsError)

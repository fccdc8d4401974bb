"""What people have becomes a key, at a cost that the store cannot choose."""

from __future__ import annotations

import os
import time
import unicodedata
from typing import Any

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given
from hypothesis import strategies as st

from megafs.crypto import kdf
from megafs.errors import BadPassphrase, BadUsage, Corrupt, MegafsError

SALT = bytes(range(16))
FLOOR = kdf.Cost(time=1, memory=64 << 10, lanes=4)
FILE = bytes(range(64))

secrets = st.binary(min_size=32, max_size=32)


def _published() -> list[dict[str, str]]:
    path = os.path.join(os.path.dirname(cryptography_vectors.__file__), "KDF", "argon2id.txt")
    cases: list[dict[str, str]] = []
    with open(path) as lines:
        for line in lines:
            name, equals, value = line.partition("=")
            if name.strip() == "COUNT":
                cases.append({})
            elif equals and not line.startswith("#"):
                cases[-1][name.strip()] = value.strip()
    return cases


@pytest.mark.parametrize("case", _published(), ids=lambda c: c["output"][:8])
def test_published_argon2id_vector(case: dict[str, str]) -> None:
    derived = Argon2id(
        salt=bytes.fromhex(case["salt"]),
        length=int(case["length"]),
        iterations=int(case["iter"]),
        lanes=int(case["lanes"]),
        memory_cost=int(case["memcost"]),
        ad=bytes.fromhex(case["ad"]) if "ad" in case else None,
        secret=bytes.fromhex(case["secret"]) if "secret" in case else None,
    ).derive(bytes.fromhex(case["pass"]))

    assert derived.hex() == case["output"]


def test_a_passphrase_gives_what_argon2id_gives() -> None:
    # These bytes open every slot ever written: they must stay.
    plain = kdf.from_passphrase("correct horse", SALT, FLOOR)
    with_file = kdf.from_passphrase("correct horse", SALT, FLOOR, FILE)

    assert plain.hex() == ("92ba76093056ebf692fd1b8576b8261f798d57b78141f6a43da4155b1dc9917b")
    assert with_file.hex() == ("28442825538b22e39f33beb0c67ac66fca88bfde2abd2be76fd792a1319b1019")


def test_other_sources_stay_what_they_were() -> None:
    assert kdf.from_keyfile(FILE, SALT).hex() == (
        "34d66ef7c6e1983ecaaacccfc80a48f26104acb8f10a6b58c2d3d8e7b12e9d80"
    )
    printed = kdf.format_recovery(bytes(range(32)))
    assert printed == "000G-40R4-0M30-E209-185G-R38E-1W81-24GK-2GAH-C5RR-34D1-P70X-3RFN-E1BQ"
    assert kdf.from_recovery(printed).hex() == (
        "ad307affb8a9bc0a01c89db999521989742b95e967ce34e4e2cdf59090b70e73"
    )


@pytest.mark.parametrize("name", kdf.PROFILES)
def test_our_own_profiles_are_within_bounds(name: str) -> None:
    assert kdf.check_cost(kdf.profile(name)) is kdf.PROFILES[name]


def test_profiles_are_those_documented() -> None:
    gib = 1 << 20
    assert {
        "default": kdf.Cost(3, gib // 4, 4),
        "rfc9106": kdf.Cost(1, 2 * gib, 4),
        "low-memory": kdf.Cost(3, gib // 16, 4),
    } == kdf.PROFILES
    with pytest.raises(BadUsage, match="low-memory"):
        kdf.profile("fast")


HOSTILE = [
    kdf.Cost(1, kdf.MEMORY_FLOOR - 1, 4),
    kdf.Cost(1, 0, 4),
    kdf.Cost(1, kdf.MEMORY_CEILING + 1, 4),
    kdf.Cost(1, 2**40, 4),
    kdf.Cost(0, kdf.MEMORY_FLOOR, 4),
    kdf.Cost(17, kdf.MEMORY_FLOOR, 4),
    kdf.Cost(2**32, kdf.MEMORY_FLOOR, 4),
    kdf.Cost(1, kdf.MEMORY_FLOOR, 0),
    kdf.Cost(1, kdf.MEMORY_FLOOR, 17),
    kdf.Cost(-1, -1, -1),
]


@pytest.mark.parametrize("cost", HOSTILE, ids=str)
def test_a_cost_out_of_bounds_is_refused_before_any_work(cost: kdf.Cost) -> None:
    began = time.process_time()
    with pytest.raises(Corrupt):
        kdf.from_passphrase("x", SALT, cost)

    assert time.process_time() - began < 0.02


def test_the_same_text_composed_otherwise_is_the_same_passphrase() -> None:
    composed = "Größe naïve Å"
    apart = unicodedata.normalize("NFD", composed)

    assert apart != composed
    assert kdf.normalised(apart) == kdf.normalised(composed) == composed.encode()


def test_nothing_else_about_a_passphrase_is_changed() -> None:
    different = ["secret", "Secret", " secret", "secret ", "secret\n", "sec ret", "ｓecret"]

    assert len({kdf.normalised(text) for text in different}) == len(different)


@pytest.mark.parametrize("text", ["", "x" * 1025, "\udcff\udcfe hunter2"])
def test_an_impossible_passphrase_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(BadUsage) as refusal:
        kdf.normalised(text)

    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 bytes"),
        (bytes(range(15)), "15 bytes"),
        (b"\0" * 64, "different bytes"),
        (b"abcdefg" * 20, "different bytes"),
        (bytes(range(256)) * 4097, "larger"),
    ],
)
def test_a_key_file_that_cannot_protect_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(BadUsage, match=why):
        kdf.keyfile_digest(content)


def test_a_key_file_alone_must_be_longer() -> None:
    kdf.keyfile_digest(bytes(range(16)))
    with pytest.raises(BadUsage, match="32 are needed"):
        kdf.from_keyfile(bytes(range(31)), SALT)


@given(secrets)
def test_a_recovery_key_survives_paper_and_people(secret: bytes) -> None:
    printed = kdf.format_recovery(secret)

    assert kdf.parse_recovery(printed) == secret
    for sloppy in (
        printed.lower(),
        printed.replace("-", " "),
        printed.replace("-", ""),
        "  " + printed.replace("-", " - ", 3) + "\n",
        printed.replace("0", "O").replace("1", "l"),
        printed.replace("0", "o").replace("1", "I").replace("V", "u"),
        printed.replace("-", "\u2013"),
    ):
        assert kdf.parse_recovery(sloppy) == secret


def test_a_recovery_key_is_52_characters_and_4_that_check_them() -> None:
    letters = kdf.format_recovery(os.urandom(32)).replace("-", "")

    assert len(letters) == 56
    assert not set(letters) & set("ILOU")


@given(secrets, st.data())
def test_a_mistyped_recovery_key_is_told_from_a_wrong_one(secret: bytes, data: Any) -> None:
    letters = kdf.format_recovery(secret).replace("-", "")
    at = data.draw(st.integers(0, 55))
    other = data.draw(
        st.sampled_from(sorted(set("0123456789ABCDEFGHJKMNPQRSTVWXYZ") - {letters[at]}))
    )

    with pytest.raises(BadPassphrase, match="mistyped"):
        kdf.parse_recovery(letters[:at] + other + letters[at + 1 :])


@pytest.mark.parametrize(("change", "why"), [(-1, "55 characters"), (1, "57 characters")])
def test_a_recovery_key_of_another_length_is_told(change: int, why: str) -> None:
    letters = kdf.format_recovery(bytes(32)).replace("-", "")
    with pytest.raises(BadPassphrase, match=why):
        kdf.parse_recovery(letters[:-1] if change < 0 else letters + "0")


@given(st.text(max_size=80))
def test_any_text_is_a_recovery_key_or_a_clear_no(text: str) -> None:
    try:
        kdf.parse_recovery(text)
    except MegafsError as no:
        assert type(no) is BadPassphrase


def test_the_four_ways_in_never_give_the_same_key() -> None:
    found = {
        kdf.from_passphrase("p", SALT, FLOOR),
        kdf.from_passphrase("p", SALT, FLOOR, FILE),
        kdf.from_passphrase("p", bytes(16), FLOOR),
        kdf.from_passphrase("q", SALT, FLOOR),
        kdf.from_passphrase("p", SALT, kdf.Cost(2, 64 << 10, 4)),
        kdf.from_keyfile(FILE, SALT),
        kdf.from_keyfile(FILE, bytes(16)),
        kdf.from_keyfile(FILE + b"x", SALT),
        kdf.from_recovery(kdf.format_recovery(FILE[:32])),
    }
    assert len(found) == 9

"""Signatures are those of Amazon's examples and of botocore."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from unittest.mock import patch

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megafs.stores.s3.sigv4 import EMPTY_SHA256, UNSIGNED, Credentials, Signer, target

# "Signature Calculations for the Authorization Header", S3 API reference, its four examples.
KEYS = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
HOST = "examplebucket.s3.amazonaws.com"
THEN = datetime(2013, 5, 24, tzinfo=UTC).timestamp()
HELLO = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "sha256", "signature"),
    [
        ("GET", "/test.txt", {}, {"range": "bytes=0-9"}, EMPTY_SHA256,
         "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        ("PUT", "/test$file.text", {},
         {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
         HELLO, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"),
        ("GET", "/", {"lifecycle": ""}, {}, EMPTY_SHA256,
         "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("GET", "/", {"max-keys": "2", "prefix": "J"}, {}, EMPTY_SHA256,
         "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)  # fmt: skip
def test_amazons_examples(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], sha256: str,
    signature: str,
) -> None:  # fmt: skip
    signed = Signer("us-east-1").sign(
        KEYS, method, target(path, query), {"host": HOST, **headers}, sha256, THEN
    )

    assert signed["authorization"].endswith(f"Signature={signature}")


words = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=12)
plain = st.text("ABCdef019/+=", min_size=1, max_size=40)


@given(
    keys=st.builds(Credentials, plain, plain, st.just("") | plain),
    method=st.sampled_from(["GET", "PUT", "DELETE", "HEAD"]),
    path=st.lists(st.text("azAZ09-_.~", min_size=1, max_size=9).filter(lambda t: t.strip(".")),
                  max_size=5),
    query=st.dictionaries(words.filter(bool), words, max_size=4),
    region=st.sampled_from(["us-east-1", "eu-central-1", "auto"]),
    day=st.integers(0, 20_000),
)  # fmt: skip
def test_the_same_as_botocore(
    keys: Credentials, method: str, path: list[str], query: dict[str, str], region: str, day: int
) -> None:
    now = 1_400_000_000 + day * 86_400
    where = target("/" + "/".join(path), query)
    extra = {"range": "bytes=0-9"} if method == "GET" else {}
    request = botocore.awsrequest.AWSRequest(
        method=method, url=f"https://example.org:8000{where}", headers=dict(extra)
    )
    theirs = botocore.auth.S3SigV4Auth(
        botocore.credentials.Credentials(keys.access_key, keys.secret_key, keys.token or None),
        "s3",
        region,
    )
    moment = datetime.fromtimestamp(now, UTC)
    with patch("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: moment):
        theirs.add_auth(request)
    sha256 = request.headers["X-Amz-Content-SHA256"]
    ours = Signer(region).sign(
        keys, method, where, {"host": "example.org:8000", **extra}, sha256, now
    )
    signature = request.headers["Authorization"].rpartition("Signature=")[2]
    assert ours["authorization"].rpartition("Signature=")[2] == signature


def test_a_new_day_and_new_credentials_need_a_new_key() -> None:
    signer = Signer("us-east-1")
    other = Credentials("B", "other")

    def signature(who: Signer, keys: Credentials, now: float) -> str:
        return who.sign(keys, "GET", "/", {"host": HOST}, UNSIGNED, now)["authorization"]

    for keys, now in ((KEYS, THEN), (KEYS, THEN + 86_400), (other, THEN + 86_400), (KEYS, THEN)):
        assert signature(signer, keys, now) == signature(Signer("us-east-1"), keys, now)


def test_secrets_are_not_shown() -> None:
    assert "SECRET" not in repr(Credentials("A", "SECRET1", "SECRET2"))

"""The S3 driver on a service that does what no real server can be told to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from megafs.errors import BadStore, Denied, Full, TooLarge
from megafs.stores.s3.credentials import Chain, Fixed
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.options import S3Settings, read_options
from megafs.stores.s3.sigv4 import Credentials
from tests.fakes.proxy import Answer
from tests.fakes.s3 import Service, serving

KEY = Fixed(Credentials("KEY", "secret"))


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving(Service()) as running:
        yield running


def store_at(service: Service, **options: str) -> S3Store:
    settings = replace(read_options(options), endpoint=service.endpoint)
    return S3Store("bucket", "v", KEY, settings)


async def test_objects_come_and_go(service: Service) -> None:
    store = store_at(service)
    await store.create()
    await store.put_new("packs/a", b"abc" * 1000)
    assert await store.get("packs/a", 1, 4) == b"bcab"
    assert [entry.size for entry in (await store.list("packs/")).entries] == [3000]
    await store.delete("packs/a")
    assert not service.objects
    await store.aclose()


# ---- credentials --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(403, "AccessDenied"),
        Answer(403, "SignatureDoesNotMatch"),
        Answer(403, "KeyWasRotated"),
        Answer(401, "Unauthorized"),
        Answer(403, body=b""),
        Answer(400, "ExpiredToken"),
    ],
)
async def test_whatever_a_refusal_is_called_the_keys_are_read_again(
    service: Service, tmp_path: Path, refusal: Answer, autojump_clock: trio.testing.MockClock
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("OLD:secret\n")
    keys.chmod(0o600)
    settings = S3Settings(endpoint=service.endpoint)
    store = S3Store("bucket", "v", Chain(file=keys), settings)
    await store.put_new("a", b"1")
    keys.write_text("NEW:secret\n")
    await trio.sleep(11)
    service.proxy.next(refusal)

    await store.put_new("b", b"2")

    used = [request.headers["authorization"] for request, _ in service.proxy.seen]
    assert ["Credential=NEW/" in line for line in used] == [False, False, True]
    await store.aclose()


async def test_a_store_that_refuses_everybody_does_not_make_us_read_all_the_time(
    service: Service, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("[default]\naws_access_key_id = A\naws_secret_access_key = s\n")
    keys.chmod(0o600)
    service.keys = set()
    store = S3Store("bucket", "v", Chain(file=keys), S3Settings(endpoint=service.endpoint))
    await trio.sleep(20)
    for _ in range(5):
        with pytest.raises(Denied):
            await store.get("a", 0, 1)
    assert len(service.proxy.seen) == 5, "the same keys are not tried twice"
    await store.aclose()


# ---- what people are told -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, "AccountProblem"),
        Answer(403, "QuotaExceeded"),
        Answer(403, body=b"<Error><Code>AccessDenied</Code><Message>Cannot upload files, storage"
               b" cap exceeded. See the Caps page</Message></Error>"),
        Answer(403, body=b"<Error><Code>AccessDenied</Code><Message>Forbidden: Bucket size quota"
               b" is reached, maximum total size is 5</Message></Error>"),
        Answer(507, body=b""),
    ],
)  # fmt: skip
async def test_an_account_without_room_is_full(service: Service, answer: Answer) -> None:
    store = store_at(service)
    service.proxy.next(answer)
    with pytest.raises(Full, match="over its quota"):
        await store.put_new("a", b"1")
    await store.aclose()


async def test_a_wrong_signature_names_what_a_proxy_may_have_changed(service: Service) -> None:
    store = store_at(service)
    service.proxy.next(Answer(403, "SignatureDoesNotMatch"))
    with pytest.raises(Denied, match=r"secret key.*rewrites the Host header \(127\.0\.0\.1:"):
        await store.get("a", 0, 1)
    await store.aclose()


async def test_a_proxy_that_wants_a_login_is_named(service: Service) -> None:
    store = store_at(service)
    service.proxy.next(Answer(407, body=b"<html>who are you?</html>"))
    with pytest.raises(Denied, match="the proxy wants a login"):
        await store.get("a", 0, 1)
    await store.aclose()


@pytest.mark.parametrize(
    "text",
    [
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"<html><center>The plain HTTP request was sent to HTTPS port</center></html>",
        b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
)
async def test_plain_http_at_a_port_of_tls_is_named(service: Service, text: bytes) -> None:
    store = store_at(service)
    service.proxy.next(Answer(400, body=text))
    with pytest.raises(BadStore, match="speaks TLS at this port: write https://"):
        await store.list("")
    await store.aclose()


# ---- proxies and policies -----------------------------------------------------------------------


async def test_a_body_that_is_too_large_is_told_from_a_full_store(service: Service) -> None:
    service.body_limit = 1 << 20
    store = store_at(service)
    await store.put_new("a", bytes(1 << 20))
    with pytest.raises(TooLarge, match="client_max_body_size"):
        await store.put_new("b", bytes((1 << 20) + 1))
    service.proxy.next(Answer(400, "EntityTooLarge"))
    with pytest.raises(TooLarge):
        await store.put_new("b", b"")
    await store.aclose()


async def test_a_policy_may_allow_the_prefix_only(service: Service) -> None:
    service.may_list = lambda prefix: prefix.startswith("v/")
    store = store_at(service)
    await store.create()
    assert not (await store.list("")).entries
    await store.aclose()


async def test_the_bucket_is_left_alone_where_it_shall_not_be_looked_for(service: Service) -> None:
    store = store_at(service, check_bucket="no")
    await store.create()
    assert not service.proxy.seen
    await store.aclose()


async def test_what_the_server_is_told_about_an_object(service: Service) -> None:
    store = store_at(
        service,
        storage_class="standard_ia",
        sse="aws:kms",
        sse_kms_key_id="alias/mine",
        acl="bucket-owner-full-control",
        requester_pays="yes",
    )
    await store.put_new("packs/a", bytes(128 << 10))
    await store.put_new("commits/1", b"small")
    await store.get("commits/1", 0, 5)
    await store.list("")
    extra = [
        {name: value for name, value in request.headers.items() if name.startswith("x-amz-")}
        for request, _ in service.proxy.seen
    ]
    for headers in extra:
        del headers["x-amz-date"], headers["x-amz-content-sha256"]
    pays = {"x-amz-request-payer": "requester"}
    told = pays | {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "alias/mine",
        "x-amz-acl": "bucket-owner-full-control",
    }
    assert extra == [told | {"x-amz-storage-class": "STANDARD_IA"}, told, pays, pays]
    signed = service.proxy.seen[0][0].headers["authorization"]
    assert "x-amz-storage-class" in signed and "x-amz-request-payer" in signed
    await store.aclose()

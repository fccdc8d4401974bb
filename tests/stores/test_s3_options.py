"""Which server, which address style, which region: without asking anybody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megafs.errors import BadStore
from megafs.stores.drivers import DRIVERS
from megafs.stores.s3.driver import S3Store, open_driver
from megafs.stores.s3.option_table import S3_OPTIONS
from megafs.stores.s3.options import read_options
from megafs.stores.urls import Location

OPTIONS = DRIVERS["s3"].options


def open_s3(bucket: str, prefix: str, options: dict[str, str]) -> S3Store:
    return open_driver(Location(bucket, f"/{prefix}"), options, 16)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("bucket", "options", "host", "root", "region"),
    [
        ("bkt", {}, "bkt.s3.us-east-1.amazonaws.com", "", "us-east-1"),
        ("bkt", {"region": "eu-west-1"}, "bkt.s3.eu-west-1.amazonaws.com", "", "eu-west-1"),
        ("bkt", {"region": "cn-north-1"}, "bkt.s3.cn-north-1.amazonaws.com.cn", "", "cn-north-1"),
        ("b.c", {}, "s3.us-east-1.amazonaws.com", "/b.c", "us-east-1"),
        ("bkt", {"path_style": "yes"}, "s3.us-east-1.amazonaws.com", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "http://127.0.0.1:9000"}, "127.0.0.1:9000", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "http://[::1]:9000"}, "[::1]:9000", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "ceph.example.org"}, "ceph.example.org", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "https://example.org/s3/"}, "example.org", "/s3/bkt", "us-east-1"),
        ("bkt", {"endpoint": "ceph.example.org", "path_style": "no"}, "bkt.ceph.example.org", "",
         "us-east-1"),
        ("bkt", {"endpoint": "https://acc.r2.cloudflarestorage.com"},
         "acc.r2.cloudflarestorage.com", "/bkt", "auto"),
        ("bkt", {"endpoint": "s3.eu-central-1.s4.mega.io"},
         "s3.eu-central-1.s4.mega.io", "/bkt", "eu-central-1"),
        ("bkt", {"endpoint": "https://s3.eu-central-003.backblazeb2.com"},
         "s3.eu-central-003.backblazeb2.com", "/bkt", "eu-central-003"),
        ("bkt", {"endpoint": "https://s3.eu-west-1.amazonaws.com"},
         "bkt.s3.eu-west-1.amazonaws.com", "", "eu-west-1"),
    ],
)  # fmt: skip
def test_where_requests_go(
    bucket: str, options: dict[str, str], host: str, root: str, region: str
) -> None:
    store = open_s3(bucket, "some/prefix/", options)

    assert (store._session.host, store._root, store._settings.region) == (host, root, region)
    assert store._prefix == "some/prefix/"
    assert store.url == f"s3://{bucket}/some/prefix"


def test_the_environment_is_followed_where_no_option_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general.example.org")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "r1")
    store = open_s3("bkt", "", {})
    assert (store._session.host, store._settings.region) == ("general.example.org", "r1")

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example.org")
    monkeypatch.setenv("AWS_REGION", "r2")
    store = open_s3("bkt", "", {})
    assert (store._session.host, store._settings.region) == ("s3.example.org", "r2")

    store = open_s3("bkt", "", {"endpoint": "http://mine.example.org", "region": "r3"})
    assert (store._session.host, store._settings.region) == ("mine.example.org", "r3")


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("s3.amazonaws.com", "us-east-1"),
        ("s3-eu-west-1.amazonaws.com", "eu-west-1"),
        ("s3.dualstack.ap-southeast-2.amazonaws.com", "ap-southeast-2"),
        ("s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3-fips.dualstack.us-east-2.amazonaws.com", "us-east-2"),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("bucket.vpce-0a1b-xyz.s3.eu-central-1.vpce.amazonaws.com", "eu-central-1"),
        ("acc.eu.r2.cloudflarestorage.com", "auto"),
        ("storage.googleapis.com", "auto"),
        ("fly.storage.tigris.dev", "auto"),
        ("storage.yandexcloud.net", "ru-central1"),
        ("s3.wasabisys.com", "us-east-1"),
        ("s3.ap-northeast-1.wasabisys.com", "ap-northeast-1"),
        ("s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("s3.fr-par.scw.cloud", "fr-par"),
        ("s3.gra.io.cloud.ovh.net", "gra"),
        ("s3.eu-west-par.io.cloud.ovh.net", "eu-west-par"),
        ("s3.us-south.cloud-object-storage.appdomain.cloud", "us-south"),
        ("s3.private.eu-de.cloud-object-storage.appdomain.cloud", "eu-de"),
        ("abc123.compat.objectstorage.us-ashburn-1.oraclecloud.com", "us-ashburn-1"),
        ("abc123.compat.objectstorage.eu-frankfurt-1.oci.customer-oci.com", "eu-frankfurt-1"),
        ("cos.ap-guangzhou.myqcloud.com", "ap-guangzhou"),
        ("obs.eu-west-101.myhuaweicloud.eu", "eu-west-101"),
        ("s3.oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou"),
        ("sos-ch-dk-2.exo.io", "ch-dk-2"),
        ("fsn1.your-objectstorage.com", "fsn1"),
        ("gb-lon-1.linodeobjects.com", "gb-lon-1"),
        ("ewr1.vultrobjects.com", "ewr1"),
        ("eu-001.s3.synologyc2.net", "eu-001"),
        ("s3-eu-central-2.ionoscloud.com", "eu-central-2"),
        ("s3.eu-amsterdam-1.megas4.com", "eu-amsterdam-1"),
        ("s3.example.org", "us-east-1"),
        ("nyc3.digitaloceanspaces.com", "us-east-1"),
    ],
)
def test_the_region_is_in_the_name_of_the_endpoint(endpoint: str, region: str) -> None:
    assert open_s3("bkt", "", {"endpoint": endpoint})._settings.region == region
    assert open_s3("bkt", "", {"endpoint": endpoint, "region": "r1"})._settings.region == "r1"


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ({"fips": "yes", "region": "us-east-2"}, "bkt.s3-fips.us-east-2.amazonaws.com"),
        ({"dualstack": "yes"}, "bkt.s3.dualstack.us-east-1.amazonaws.com"),
        ({"dualstack": "yes", "fips": "yes"}, "bkt.s3-fips.dualstack.us-east-1.amazonaws.com"),
        ({"endpoint": "https://oss-cn-hangzhou.aliyuncs.com"}, "bkt.oss-cn-hangzhou.aliyuncs.com"),
    ],
)
def test_which_host_is_asked(options: dict[str, str], host: str) -> None:
    assert open_s3("bkt", "", options)._session.host == host


def test_dualstack_and_fips_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    assert open_s3("bkt", "", {})._session.host == "bkt.s3-fips.dualstack.us-east-1.amazonaws.com"


CONFIG = """
[default]
region = r-default
endpoint_url = http://default.example.org

[profile work]
region = r-work
endpoint_url = http://general.example.org
ca_bundle = {ca}
services = of-work
s3 =
    addressing_style = virtual
    max_concurrent_requests = 20

[profile plain]
endpoint_url = http://plain.example.org

[services of-work]
dynamodb =
    endpoint_url = http://dynamo.example.org
s3 =
    endpoint_url = http://work.example.org
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    path = tmp_path / ".aws" / "config"
    path.write_text(CONFIG.format(ca=tmp_path / "ca.pem"))
    return path


def test_a_profile_brings_its_server_along(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's endpoint is another account's: a profile's key must not go there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.example.org")
    monkeypatch.setenv("AWS_REGION", "r-elsewhere")

    settings = read_options({"profile": "work"})

    assert settings.endpoint == "http://work.example.org"
    assert settings.region == "r-work"
    assert settings.ca == tmp_path / "ca.pem"
    assert settings.path_style is False
    plain = read_options({"profile": "plain"})
    assert plain.endpoint == "http://plain.example.org"
    assert (plain.ca, plain.path_style) == (None, None)
    chosen = read_options(
        {"profile": "work", "endpoint": "mine.example.org", "region": "r", "path_style": "yes"}
    )
    assert (chosen.endpoint, chosen.region) == ("https://mine.example.org", "r")
    assert chosen.path_style is True


def test_a_profile_of_the_environment_comes_after_its_other_variables(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_options({}).endpoint == "http://default.example.org"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert read_options({}).endpoint == "http://work.example.org"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert read_options({}).endpoint == ""
    monkeypatch.delenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://said.example.org")
    monkeypatch.setenv("AWS_REGION", "r-said")
    assert (read_options({}).endpoint, read_options({}).region) == (
        "http://said.example.org",
        "r-said",
    )


def test_a_profile_in_the_credentials_file_counts(config: Path) -> None:
    config.with_name("credentials").write_text("[other]\nendpoint_url = http://o.example.org\n")
    assert read_options({"profile": "other"}).endpoint == "http://o.example.org"


def test_a_broken_file_is_named_without_its_contents(config: Path) -> None:
    config.write_text("[default]\nTOPSECRET\n")
    with pytest.raises(BadStore, match=r"config is not a file of the AWS form") as caught:
        read_options({})
    assert "TOPSECRET" not in str(caught.value) and caught.value.__suppress_context__
    config.write_bytes(b"\xff\xfe")
    with pytest.raises(BadStore, match="cannot be read"):
        read_options({})


@pytest.mark.parametrize(
    ("bucket", "prefix", "options", "text"),
    [
        ("", "", {}, "not the name of a bucket"),
        ("a/b", "", {}, "not the name of a bucket"),
        ("-a", "", {}, "not the name of a bucket"),
        ("bucket", "a//b", {}, "prefix"),
        ("bucket", "a b", {}, "prefix"),
        ("bucket", "ü", {}, "prefix"),
        ("bucket", "a/../b", {}, "prefix"),
        ("bucket", "", {"path_style": "maybe"}, "path_style= takes yes, no or auto"),
        ("bucket", "", {"read_timeout": "soon"}, "read_timeout= takes seconds"),
        ("bucket", "", {"read_timeout": "0"}, "read_timeout= takes seconds"),
        ("bucket", "", {"region": "Mars!"}, "not a region"),
        ("bucket", "", {"endpoint": "http://127.0.0.1:1", "path_style": "no"}, "cannot work"),
        ("bucket", "", {"endpoint": "ftp://example.org"}, "not an http"),
        ("bucket", "", {"endpoint": "http://u:p@example.org"}, "no user"),
        ("bucket", "", {"ca": "/does/not/exist"}, "cannot read certificates"),
        ("bucket", "", {"endpoint": "http://[::1"}, "not a URL"),
        ("bucket", "", {"endpoint": "http://[::1", "path_style": "no"}, "not a URL"),
        ("bucket", "", {"endpoint": "http://h:99999"}, "not a URL"),
        ("bucket", "", {"storage_class": "DEEP_ARCHIVE"}, "cannot be read at once"),
        ("bucket", "", {"storage_class": "a b"}, "one word"),
        ("bucket", "", {"acl": "x\r\ny"}, "one word"),
        ("bucket", "", {"sse": "rot13"}, "sse= takes AES256"),
        ("bucket", "", {"sse_kms_key_id": "k"}, "sse=aws:kms"),
        ("bucket", "", {"sse": "aws:kms", "sse_kms_key_id": "k\r\n"}, "the id"),
        ("bucket", "", {"fips": "yes", "endpoint": "e.example.org"}, "leave endpoint= out"),
        ("bucket", "", {"check_bucket": "perhaps"}, "takes yes, no or auto"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    bucket: str, prefix: str, options: dict[str, str], text: str
) -> None:
    with pytest.raises(BadStore, match=text):
        open_s3(bucket, prefix, options)


def test_no_option_takes_a_secret() -> None:
    names_a_key = {"sse_kms_key_id"}  # of the server's, by its id
    assert not [n for n in OPTIONS - names_a_key if "secret" in n or "key" in n]


def test_every_option_is_documented() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "mount-options.md").read_text()
    assert {option.name for option in S3_OPTIONS} == OPTIONS
    for option in S3_OPTIONS:
        assert f"| `{option.name}={option.example}` | {option.text} |\n" in docs

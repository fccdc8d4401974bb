"""The command over a real S3 service: what is wrong there is said in one line."""

from __future__ import annotations

import os

import pytest

from tests.engines.ceph import Ceph
from tests.mount.machine import Machine

pytestmark = [pytest.mark.fuse, pytest.mark.ceph]


@pytest.fixture
def bucket(machine: Machine, ceph: Ceph) -> Machine:
    machine.url = f"s3://{ceph.fresh_name()}/some/prefix"
    environ = ceph.environment()
    endpoint = environ.pop("AWS_ENDPOINT_URL_S3")
    machine.environ.update(environ)
    machine.environ["HOME"] = str(machine.place)
    (machine.place / "config.toml").write_text(
        f'[volume."{machine.url}"]\nendpoint = "{endpoint}"\ndeadline = "5s"\n'
    )
    return machine


def test_a_missing_bucket_is_made_and_used(bucket: Machine) -> None:
    bucket.format()
    bucket.mount()
    data = os.urandom(3 << 20)
    (bucket.mnt / "f").write_bytes(data)
    bucket.umount()
    bucket.mount("--state-dir", bucket.place / "s2", "--cache-dir", bucket.place / "c2")
    assert (bucket.mnt / "f").read_bytes() == data
    bucket.umount()


def test_wrong_bucket(bucket: Machine) -> None:
    said = bucket.mount(code=14).stderr.splitlines()[-1]
    assert "bucket" in said


def test_wrong_credentials(bucket: Machine) -> None:
    bucket.format()
    bucket.environ["AWS_SECRET_ACCESS_KEY"] = "geheim"
    said = bucket.mount(code=13).stderr.splitlines()[-1]
    assert "geheim" not in said
    bucket.environ["AWS_ACCESS_KEY_ID"] = "nobody"
    bucket.mount(code=13)


def test_not_a_volume(bucket: Machine) -> None:
    bucket.format()
    prefix = bucket.url
    bucket.url = prefix.removesuffix("prefix") + "elsewhere"
    config = bucket.place / "config.toml"
    config.write_text(config.read_text().replace(prefix, bucket.url))
    assert "megafs format makes a new volume" in bucket.mount(code=10).stderr


def test_without_network_once_it_has_been_mounted_here(bucket: Machine) -> None:
    bucket.format()
    bucket.mount()
    data = os.urandom(3 << 20)
    (bucket.mnt / "f").write_bytes(data)
    bucket.umount()

    nowhere = ("-o", "endpoint=http://127.0.0.1:1,deadline=2s")
    said = bucket.mount(*nowhere).stderr
    assert "the store did not answer: working with what this machine has" in said
    assert os.listdir(bucket.mnt) == ["f"]
    os.statvfs(bucket.mnt)
    (bucket.mnt / "g").write_text("written without network")
    assert (bucket.mnt / "g").read_text() == "written without network"
    status = bucket.status()
    assert status["offline"]
    assert status["pending_operations"] > 0
    assert "not reached since the mount" in bucket.run("status").stdout
    said = bucket.umount("--force").stderr
    assert "go there with the next mount" in said

    said = bucket.mount().stderr
    assert "from last time are on their way" in said
    assert (bucket.mnt / "g").read_text() == "written without network"
    bucket.umount()

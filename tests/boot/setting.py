"""What is on the virtual machine: five volumes, one for each way to mount that is documented.

/mnt/disk      fstab, passphrase_file; a directory of another disk
/mnt/net       fstab, key_file, _netdev; WebDAV on the host
/mnt/auto      fstab, x-systemd.automount
/mnt/service   megafs@service, the passphrase as a credential
/mnt/cloud     the examples mnt-cloud.mount and mnt-cloud.automount; WebDAV on the host
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.boot import image
from tests.engines.dav import Dav

PASSPHRASE = "correct horse battery staple"
#: The host's loopback, as qemu's user network shows it.
HOST = "10.0.2.2"
LOCAL = ("disk", "auto", "service")
REMOTE = ("net", "cloud")
#: Emulation is slow, and nothing here is about systemd's patience for mounts.
_SYSTEMD = "[Manager]\nDefaultTimeoutStartSec=15min\n"

AGENT = "/usr/local/lib/megafs-boot-agent.py"
_AGENT_UNIT = f"""\
[Unit]
Description=Does what the test asks
DefaultDependencies=no
After=systemd-tmpfiles-setup-dev.service
IgnoreOnIsolate=yes

[Service]
ExecStart=/usr/bin/python3 {AGENT} /dev/ttyS1
Restart=always

[Install]
WantedBy=sysinit.target
"""
_NETWORK = """\
[Match]
Name=eth*

[Network]
DHCP=ipv4
"""
_SERVICE = """\
MEGAFS_URL=file:///srv/store/service
MEGAFS_MOUNTPOINT=/mnt/service
MEGAFS_OPTIONS=allow_other
"""
_ON_THE_DISK = """\
[Unit]
RequiresMountsFor=/srv/store
"""


def fstab(url: str) -> str:
    """url: of the WebDAV server, as the guest has it."""
    passphrase = "passphrase_file=/etc/megafs/passphrase"
    local = "x-systemd.requires-mounts-for=/srv/store"
    return (
        "LABEL=store /srv/store ext4 defaults 0 2\n"
        f"file:///srv/store/disk /mnt/disk megafs nofail,{local},{passphrase} 0 0\n"
        f"{url}/net /mnt/net megafs _netdev,nofail,allow_other,fsync=local,"
        "key_file=/etc/megafs/net.key 0 0\n"
        "file:///srv/store/auto /mnt/auto megafs noauto,_netdev,x-systemd.automount,"
        f"x-systemd.mount-timeout=15min,allow_other,{local},{passphrase} 0 0\n"
    )


def configure(root: Path, place: Path, url: str) -> None:
    """Write the configuration into a root file system in which megafs is installed.

    place: where `format_all` left the key file.
    """
    examples = image.CHECKOUT / "contrib" / "systemd" / "examples"
    mount = (examples / "mnt-cloud.mount").read_text()
    for old, new in (
        ("s3://bucket/prefix", f"{url}/cloud"),
        ("endpoint=https://s3.example.org,", ""),
        ("/etc/megafs/cloud.passphrase", "/etc/megafs/passphrase"),
    ):
        assert old in mount, f"the example has no {old}"
        mount = mount.replace(old, new)
    agent = Path(__file__).with_name("agent.py").read_text()
    files: dict[str, tuple[str, int]] = {
        AGENT: (agent, 0o644),
        "/etc/systemd/system/megafs-boot-agent.service": (_AGENT_UNIT, 0o644),
        "/etc/systemd/network/all.network": (_NETWORK, 0o644),
        "/etc/systemd/system.conf.d/emulated.conf": (_SYSTEMD, 0o644),
        "/etc/fstab": (fstab(url), 0o644),
        "/etc/hostname": ("booted\n", 0o644),
        "/etc/megafs/passphrase": (PASSPHRASE + "\n", 0o600),
        "/etc/megafs/service.passphrase": (PASSPHRASE + "\n", 0o600),
        "/etc/megafs/net.key": ((place / "net.key").read_text(), 0o600),
        "/etc/megafs/service.conf": (_SERVICE, 0o600),
        "/etc/systemd/system/megafs@service.service.d/disk.conf": (_ON_THE_DISK, 0o644),
        "/etc/systemd/system/mnt-cloud.mount": (mount, 0o644),
        "/etc/systemd/system/mnt-cloud.automount": (
            (examples / "mnt-cloud.automount").read_text(),
            0o644,
        ),
    }
    for name, (text, mode) in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    (root / "etc/megafs").chmod(0o700)
    for mountpoint in (*LOCAL, *REMOTE):
        (root / "mnt" / mountpoint).mkdir(exist_ok=True)
    for directory in ("srv/store", "var/log/journal"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    # Not a first boot, at which systemd would enable every unit.
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    for unit in (
        *("systemd-networkd", "systemd-networkd-wait-online", "megafs-boot-agent"),
        *("megafs@service", "mnt-cloud.automount", "mnt-cloud.mount"),
    ):
        # The chroot's own systemctl, as the host may have none.
        command = ["chroot", str(root), "systemctl", "--quiet", "enable", unit]
        subprocess.run(command, check=True)


def format_all(place: Path, server: Dav) -> None:
    """Make the volumes: the local ones below place/store, the others on the server."""
    (place / "store").mkdir()
    key = place / "net.key"
    key.write_text("the key file of /mnt/net\n" * 4)
    key.chmod(0o600)
    for name in LOCAL:
        _format(place, f"file://{place}/store/{name}")
    _format(place, f"{server.url}/net", "--key-file", str(key))
    _format(place, f"{server.url}/cloud")


def _format(place: Path, url: str, *more: str) -> None:
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MEGAFS_", "AWS_"))},
        "MEGAFS_STATE_DIR": str(place / "state"),
        "MEGAFS_CACHE_DIR": str(place / "cache"),
        "MEGAFS_KDF": "low-memory",
    }
    if not more:
        environ["MEGAFS_PASSPHRASE"] = PASSPHRASE
    subprocess.run(
        [sys.executable, "-m", "megafs", "format", url, "--no-recovery-key", *more],
        env=environ,
        cwd=image.CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )

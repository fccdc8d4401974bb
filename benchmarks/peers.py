"""The filesystems that are compared, each started as its documentation says.

A peer has one place in a store, where everything it writes stays, and may be mounted there again
and again: `mount(fresh=True)` as on a machine that has never seen it, without a cache or state,
`mount(fresh=False)` with what the last mount left here.  All run in the foreground as children, so
that their processor time and memory can be read from /proc and nothing outlives the benchmark.

Written data is durable when `settle()` returns: the step that wrote has called fsync before, and
settle waits for whatever the peer still has on its way to the store.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megafs.mount import control_client, mount_record
from megafs.mount.control_messages import MountStatus, StatusRequest

PASSPHRASE = "correct horse battery staple"
ROOT = Path(__file__).parents[1]
#: Where tools/setup.sh puts S3QL where the distribution has none.
UNPACKED = ROOT / "build" / "s3ql"
TICK = os.sysconf("SC_CLK_TCK")


class PeerFailed(Exception):
    """The peer did not do what was asked; the text says what it said."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def mounted(path: Path) -> bool:
    """Whether something is mounted there; asks the kernel's table, never the mount."""
    with open("/proc/self/mountinfo") as table:
        return any(line.split()[4] == str(path) for line in table)


def processes(pid: int) -> list[int]:
    """*pid* and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as children:
                    found += map(int, children.read().split())
        except OSError:
            continue
    return found


class Peer:
    """One filesystem.  Subclasses say how it is made and mounted."""

    name = ""
    program = ""
    #: What its data lies in: "s3", "sftp" or "local".
    store = "s3"
    encrypts = True
    #: How it was set, and what its own rules are.
    note = ""
    #: Seconds that a mount may take.
    patience = 30.0
    #: Seconds until what was closed shows as under way to the store.
    quiet = 0.0
    #: Mounting takes so long that it stays mounted from one group of steps to the next.
    stays = False
    #: In how many rounds it takes part, at most.
    rounds = 1000
    #: Whether it may also be opened with a file in place of the passphrase.
    has_key_file = False

    def __init__(self, place: Path) -> None:
        self.place = place / self.name.replace(" ", "-")
        self.place.mkdir()
        self.mnt = self.place / "mnt"
        self.mnt.mkdir()
        self.environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("MEGAFS_", "AWS_", "RCLONE_"))
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._cpu_before = 0.0
        self.peak = 0

    # What subclasses say

    def make(self) -> None:
        """Make an empty place in the store, once."""

    def command(self) -> list[str | Path]:
        """The command that mounts and stays in the foreground."""
        raise NotImplementedError

    def keyed(self) -> tuple[list[str | Path], dict[str, str]]:
        """The command that mounts with the key file, and its environment."""
        raise NotImplementedError

    def local(self) -> list[Path]:
        """What a new machine does not have."""
        return [self.place / "cache", self.place / "state"]

    def given(self) -> bytes | None:
        """What the command reads from stdin."""
        return None

    def settled(self) -> bool:
        """Whether nothing is on its way to the store any more."""
        return True

    # What the benchmark asks for

    @classmethod
    def found(cls) -> bool:
        """Whether it is on this machine."""
        return shutil.which(cls.program) is not None

    def run(self, *command: str | Path, given: bytes | None = None) -> None:
        done = subprocess.run(
            command, env=self.environ, input=given or b"", capture_output=True, timeout=60
        )
        if done.returncode:
            said = (done.stderr + done.stdout).decode(errors="replace").strip()
            raise PeerFailed(said[-300:] or f"exit code {done.returncode}")

    def mount(self, *, fresh: bool, keyed: bool = False) -> float:
        """Mount and list the directory; return the seconds until the names were there.

        keyed: with the key file, for those who have one.
        """
        if fresh:
            for path in self.local():
                shutil.rmtree(path, ignore_errors=True)
        for path in self.local():
            path.mkdir(exist_ok=True)
        patience = self.patience
        log = (self.place / "log").open("ab")
        command, environ = self.keyed() if keyed else (self.command(), self.environ)
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env=environ,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
        log.close()
        assert self._process.stdin is not None
        if (given := self.given()) is not None:
            self._process.stdin.write(given)
        self._process.stdin.close()
        while not mounted(self.mnt):
            if self._process.poll() is not None:
                raise PeerFailed(f"did not mount: {self._said()}")
            if time.perf_counter() - begin > patience:
                self.end()
                raise PeerFailed(f"not mounted after {patience:.0f} s: {self._said()}")
            time.sleep(0.005)
        # In another process: one that hangs in a mount cannot be interrupted.
        listing = subprocess.Popen(["ls", self.mnt], stdout=subprocess.DEVNULL, cwd="/")
        try:
            listing.wait(patience)
        except subprocess.TimeoutExpired:
            self.end()
            raise PeerFailed("the first listing does not end") from None
        return time.perf_counter() - begin

    def settle(self, patience: float = 60.0) -> float:
        """Wait until everything is in the store; return the seconds that it took.

        Nothing under way counts only if it stays so for `quiet`, which is not part of the result.
        """
        begin = time.perf_counter()
        since: float | None = None
        while True:
            now = time.perf_counter()
            if not self.settled():
                since = None
            elif since is None:
                since = now
            if since is not None and now - since >= self.quiet:
                return since - begin
            if self._process is None or self._process.poll() is not None:
                raise PeerFailed(f"it ended: {self._said()}")
            if now - begin > patience:
                raise PeerFailed(f"not everything in the store after {patience:.0f} s")
            time.sleep(0.005)

    def umount(self, patience: float = 60.0) -> None:
        """Bring everything to the store and unmount."""
        if self._process is None:
            return
        self.usage()
        subprocess.run(["umount", self.mnt], capture_output=True, timeout=patience, check=False)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.end()
            raise PeerFailed(f"did not end {patience:.0f} s after umount") from None
        self._process = None

    def forget_peak(self) -> None:
        """Have the kernel count the peak of memory anew."""
        self.peak = 0
        for pid in processes(self._process.pid) if self._process else ():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def end(self) -> None:
        """By force, whatever it does."""
        if self._process is not None:
            for pid in reversed(processes(self._process.pid)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._process.wait()
            self._process = None
        if mounted(self.mnt):
            subprocess.run(["umount", "-l", self.mnt], capture_output=True, check=False)

    def usage(self) -> float:
        """Seconds of processor time so far of the peer's processes; follows their peak memory."""
        total, peak = 0.0, 0
        if self._process is None:
            return 0.0
        for pid in processes(self._process.pid):
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
                with open(f"/proc/{pid}/status") as status:
                    lines = [line for line in status if line.startswith("VmHWM")]
            except OSError:
                continue
            total += sum(map(int, fields[11:15])) / TICK
            peak += int(lines[0].split()[1]) << 10 if lines else 0
        self.peak = max(self.peak, peak)
        return total

    def _said(self) -> str:
        text = (self.place / "log").read_text(errors="replace").strip()
        return text.splitlines()[-1][-200:] if text else "nothing"


class Megafs(Peer):
    name = "megafs"
    program = sys.executable
    note = "defaults; fsync waits for the store"
    has_key_file = True

    def __init__(self, place: Path, environ: Mapping[str, str], endpoint: str, bucket: str) -> None:
        super().__init__(place)
        self._url = f"s3://{bucket}/megafs"
        # pip compiles what it installs; compiling a checkout at every mount takes 0.3 s.
        self.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environ |= {k: v for k, v in environ.items() if k != "AWS_ENDPOINT_URL_S3"}
        self.environ |= {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "PYTHONPATH": str(ROOT),
            "MEGAFS_STATE_DIR": str(self.place / "state"),
            "MEGAFS_CACHE_DIR": str(self.place / "cache"),
            "MEGAFS_RUNTIME_DIR": str(self.place / "run"),
            "MEGAFS_CONFIG": str(self.place / "config.toml"),
            "MEGAFS_PASSPHRASE": PASSPHRASE,
        }
        (self.place / "config.toml").touch()
        self._key_file = self.place / "key"
        self._key_file.write_bytes(os.urandom(64))
        self._key_file.chmod(0o600)

    def make(self) -> None:
        self.run(sys.executable, "-m", "megafs", "format", self._url)
        self.run(
            sys.executable, "-m", "megafs", "key", "add", self._url,
            "--new-key-file", self._key_file,
        )  # fmt: skip

    def command(self) -> list[str | Path]:
        return [sys.executable, "-m", "megafs", "mount", self._url, self.mnt, "--foreground"]

    def keyed(self) -> tuple[list[str | Path], dict[str, str]]:
        environ = {k: v for k, v in self.environ.items() if k != "MEGAFS_PASSPHRASE"}
        return [*self.command(), "--key-file", self._key_file], environ

    def settled(self) -> bool:
        try:
            (record,) = mount_record.records(self.place / "run")
            status = control_client.ask(record, StatusRequest(), MountStatus)
        except Exception as exc:
            raise PeerFailed(f"status: {exc}") from exc
        return not (status.staged_bytes or status.pending_operations or status.dirty_bytes)

    def umount(self, patience: float = 60.0) -> None:
        if self._process is not None:
            self.usage()
            self.run(sys.executable, "-m", "megafs", "umount", self.mnt)
        super().umount(patience)


class Rclone(Peer):
    program = "rclone"
    cache = "off"

    def __init__(self, place: Path, environ: Mapping[str, str], endpoint: str, bucket: str) -> None:
        super().__init__(place)
        self._port = free_port()
        self._bucket = bucket
        obscured = subprocess.run(
            ["rclone", "obscure", PASSPHRASE], capture_output=True, text=True, check=True
        ).stdout.strip()
        self._config = self.place / "rclone.conf"
        self._config.write_text(
            f"[s3]\ntype = s3\nprovider = Ceph\nendpoint = {endpoint}\n"
            f"access_key_id = {environ['AWS_ACCESS_KEY_ID']}\n"
            f"secret_access_key = {environ['AWS_SECRET_ACCESS_KEY']}\n"
            f"[crypt]\ntype = crypt\nremote = s3:{bucket}/{self.place.name}\n"
            f"password = {obscured}\n"
        )

    def make(self) -> None:
        self.run("rclone", "--config", self._config, "mkdir", f"s3:{self._bucket}")

    def command(self) -> list[str | Path]:
        return [
            "rclone", "--config", self._config, "mount", "crypt:", self.mnt,
            "--vfs-cache-mode", self.cache, "--cache-dir", self.place / "cache",
            # Its own 5 s would only be waited for.  With 0 s it uploads in the kernel's release,
            # where nobody can ask whether it is done.
            "--vfs-write-back", "1ms",
            # Of its own 4 at once, 60 small files 20 ms away take 1.1 s, of these 0.5 s.
            "--transfers", "16",
            "--rc", "--rc-no-auth", "--rc-addr", f"127.0.0.1:{self._port}",
        ]  # fmt: skip

    def settled(self) -> bool:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/vfs/stats",
            data=b"{}",
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                said: dict[str, Any] = json.loads(answer.read())
        except OSError as exc:
            raise PeerFailed(f"rc: {exc}") from exc
        disk = said.get("diskCache", {})
        return not (disk.get("uploadsInProgress") or disk.get("uploadsQueued"))


class RcloneOff(Rclone):
    name = "rclone crypt"
    note = "--vfs-cache-mode off: no random writes; close waits for the upload"


class RcloneFull(Rclone):
    name = "rclone crypt full"
    cache = "full"
    quiet = 0.3  # the kernel tells of a closed file later than close returns
    note = (
        "--vfs-cache-mode full --vfs-write-back 1ms --transfers 16 (its own 5 s and 4 are slower);"
        " plaintext cache; fsync reaches the local disk only, durable is when all uploads are done"
    )


class S3ql(Peer):
    """S3QL, Debian's package if it is installed, else what tools/setup.sh has unpacked.

    It has one machine at a time: unmounting brings everything to the store, a mount that was ended
    by force has to be checked before the next one.
    """

    name = "s3ql"
    program = "mount.s3ql"
    note = (
        "--compress none, --keep-cache, --threads 16 (its own 4 are slower); fsync reaches the"
        " local disk only, durable is after s3qlctrl's flushcache and backup-metadata; its cache is"
        " plaintext"
    )
    #: Flushes what is not in the store yet; prints the seconds.
    FLUSH = (
        "import os, sys, time; begin = time.perf_counter();"
        "os.setxattr(sys.argv[1], 's3ql_flushcache!', b'dummy');"
        "os.setxattr(sys.argv[1], 'upload-meta', b'dummy');"
        "print(time.perf_counter() - begin)"
    )

    def __init__(self, place: Path, environ: Mapping[str, str], endpoint: str, bucket: str) -> None:
        super().__init__(place)
        self._url = f"s3c4://{endpoint.removeprefix('http://')}/{bucket}/s3ql"
        self._auth = self.place / "authinfo"
        self._auth.write_text(
            f"[s3ql]\nstorage-url: s3c4://\nbackend-login: {environ['AWS_ACCESS_KEY_ID']}\n"
            f"backend-password: {environ['AWS_SECRET_ACCESS_KEY']}\nfs-passphrase: {PASSPHRASE}\n"
        )
        self._auth.chmod(0o600)
        self._unclean = False

    @classmethod
    def found(cls) -> bool:
        return super().found() or (UNPACKED / "python").exists()

    def _tool(self, name: str, *more: str | Path) -> list[str | Path]:
        start: list[str | Path] = [name]
        if not super().found():
            start = [UNPACKED / "python", UNPACKED / "usr/bin" / name]
        return [
            *start, "--authfile", self._auth, "--cachedir", self.place / "cache",
            "--backend-options", "no-ssl", *more, self._url,
        ]  # fmt: skip

    def make(self) -> None:
        (self.place / "cache").mkdir(exist_ok=True)
        self.run(*self._tool("mkfs.s3ql"), given=f"{PASSPHRASE}\n{PASSPHRASE}\n".encode())

    def command(self) -> list[str | Path]:
        options = (
            "--fg", "--log", "none", "--compress", "none", "--keep-cache", "--threads", "16",
        )  # fmt: skip
        return [*self._tool("mount.s3ql", *options), self.mnt]

    def mount(self, *, fresh: bool, keyed: bool = False) -> float:
        if self._unclean:
            check = self._tool("fsck.s3ql", "--batch", "--log", "none")
            done = subprocess.run(check, capture_output=True, text=True, timeout=60)
            if done.returncode not in (0, 128):  # 128: it found something and repaired it
                raise PeerFailed(f"fsck: {done.stderr.strip()[-200:]}")
            self._unclean = False
        return super().mount(fresh=fresh, keyed=keyed)

    def end(self) -> None:
        self._unclean = self._unclean or self._process is not None
        super().end()

    def settle(self, patience: float = 60.0) -> float:
        """All data, then the metadata, of which only S3QL's own file tells that it is there."""
        before = self._generation()
        # In another process: one that hangs in a mount cannot be interrupted.
        flush = [sys.executable, "-ISc", self.FLUSH, str(self.mnt / ".__s3ql__ctrl__")]
        try:
            done = subprocess.run(flush, capture_output=True, text=True, timeout=patience)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"not everything in the store after {patience:.0f} s") from None
        if done.returncode:
            raise PeerFailed(f"flushcache: {done.stderr.strip()[-150:]}")
        begin = time.perf_counter()
        while self._generation() == before:
            if self._process is None or self._process.poll() is not None:
                raise PeerFailed(f"it ended: {self._said()}")
            if time.perf_counter() - begin > patience:
                raise PeerFailed(f"no metadata in the store after {patience:.0f} s")
            time.sleep(0.005)
        return float(done.stdout) + time.perf_counter() - begin

    def _generation(self) -> str:
        """Goes up when the metadata so far is in the store."""
        (path,) = (self.place / "cache").glob("*.params")
        found = re.search(r"['\"]?seq_no['\"]?: *(\d+)", path.read_text(errors="replace"))
        if found is None:
            raise PeerFailed("its parameters are not what was expected")
        return found[1]


class S3fs(Peer):
    name = "s3fs"
    program = "s3fs"
    encrypts = False
    note = (
        "use_cache, enable_noobj_cache, notsup_compat_dir (a third of the requests); close waits"
        " for the upload; does not encrypt"
    )

    def __init__(self, place: Path, environ: Mapping[str, str], endpoint: str, bucket: str) -> None:
        super().__init__(place)
        self._bucket, self._endpoint = bucket, endpoint
        self._passwd = self.place / "passwd"
        self._passwd.write_text(
            f"{environ['AWS_ACCESS_KEY_ID']}:{environ['AWS_SECRET_ACCESS_KEY']}\n"
        )
        self._passwd.chmod(0o600)

    def make(self) -> None:
        # A prefix has to exist before s3fs mounts it.
        self._mount_root = self.place / "root"
        self._mount_root.mkdir()
        self.run(*self._command(self._bucket, self._mount_root, "-o", "nomultipart"))
        try:
            (self._mount_root / "s3fs").mkdir(exist_ok=True)
        finally:
            self.run("umount", self._mount_root)

    def _command(self, what: str, at: Path, *more: str) -> list[str | Path]:
        return [
            "s3fs", what, at, "-o", f"url={self._endpoint}", "-o", "use_path_request_style",
            "-o", f"passwd_file={self._passwd}", "-o", "sigv4", "-o", "endpoint=us-east-1", *more,
        ]  # fmt: skip

    def command(self) -> list[str | Path]:
        options = f"use_cache={self.place / 'cache'},enable_noobj_cache,notsup_compat_dir"
        return self._command(f"{self._bucket}:/s3fs", self.mnt, "-f", "-o", options)


class Gocryptfs(Peer):
    name = "gocryptfs"
    program = "gocryptfs"
    store = "local"
    note = "on a local directory, no store"

    def make(self) -> None:
        (self.place / "password").write_text(PASSPHRASE + "\n")
        (self.place / "cipher").mkdir()
        self.run("gocryptfs", "-q", "-init", "-passfile", self.place / "password", self._cipher)

    @property
    def _cipher(self) -> Path:
        return self.place / "cipher"

    def command(self) -> list[str | Path]:
        passfile = self.place / "password"
        return ["gocryptfs", "-q", "-fg", "-passfile", passfile, self._cipher, self.mnt]


class Cryfs(Peer):
    name = "cryfs"
    program = "cryfs"
    store = "local"
    note = (
        "on a local directory, no store; derives its key (scrypt, N = 2^20, not to be changed) for"
        " 25 s and with 1 GiB at every mount, so it takes part in one round only"
    )
    patience = 120.0
    stays = True
    rounds = 1

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        (self.place / "base").mkdir()
        self.environ |= {
            "CRYFS_FRONTEND": "noninteractive",
            "CRYFS_NO_UPDATE_CHECK": "true",
            "CRYFS_LOCAL_STATE_DIR": str(self.place / "keep"),
        }

    def command(self) -> list[str | Path]:
        return ["cryfs", "-f", self.place / "base", self.mnt]

    def given(self) -> bytes:
        return PASSPHRASE.encode() + b"\n"


class Sshfs(Peer):
    name = "sshfs"
    program = "sshfs"
    store = "sftp"
    encrypts = False
    note = "the server sees everything; fsync reaches its disk"

    def __init__(self, place: Path, port: int, key: Path) -> None:
        super().__init__(place)
        (self.place / "served").mkdir()
        self._port, self._key = port, key

    def command(self) -> list[str | Path]:
        # Nothing of the user's: no configuration, no agent, no known hosts.
        ssh = f"ssh -F none -o IdentityAgent=none -o IdentitiesOnly=yes -i {self._key}"
        ssh += " -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        return [
            "sshfs", "-f", f"{getpass.getuser()}@127.0.0.1:{self.place / 'served'}", self.mnt,
            "-p", str(self._port), "-o", f"ssh_command={ssh}",
        ]  # fmt: skip


class Sshd:
    """An SSH server on loopback with keys of its own, for this run."""

    def __init__(self, place: Path) -> None:
        self._place = place / "sshd"
        self._place.mkdir(mode=0o700)
        self.port = free_port()
        self.key = self._place / "user"
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._place / key], check=True
            )
        (self._place / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self._place}/host\n"
            f"AuthorizedKeysFile {self._place}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            "Subsystem sftp internal-sftp\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without it
        with (self._place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f",
                 self._place / "config"],
                stderr=log,
            )  # fmt: skip
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise PeerFailed(f"sshd does not listen: {(self._place / 'log').read_text()}")

    def end(self) -> None:
        for pid in reversed(processes(self._process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()

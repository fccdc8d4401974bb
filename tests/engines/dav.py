"""Real WebDAV servers on this machine: apache, lighttpd, nginx, rclone and wsgidav.

    with Dav("nginx") as server:
        server.url                         # webdav+http://127.0.0.1:PORT/dav
        server.files                       # the directory that it shows there

Each runs in the foreground on a free loopback port, with everything it writes below one temporary
directory, in a session of its own that is ended by pid with the block.  `setpriv --pdeathsig KILL`
ends it should this process be killed; the workers of Apache and nginx outlive that, and are ended
by whoever starts the next server.  Debian's packages: apache2-bin, lighttpd-mod-webdav,
libnginx-mod-http-dav-ext, rclone; wsgidav is PyPI's.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

KINDS = ("apache", "lighttpd", "nginx", "rclone", "wsgidav")
PACKAGES = "apache2-bin lighttpd lighttpd-mod-webdav nginx-light libnginx-mod-http-dav-ext rclone"
NAME = "megafs-dav-"
OWNER = "owner"
USER, PASSWORD, REALM = "alice", "wonder land", "megafs"

APACHE = """\
ServerRoot "{dir}"
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile "{dir}/run/apache.pid"
DefaultRuntimeDir "{dir}/run"
ErrorLog "{dir}/log/error.log"
LogLevel warn
User {user}
Group {user}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authn_file_module {modules}/mod_authn_file.so
LoadModule auth_basic_module {modules}/mod_auth_basic.so
LoadModule auth_digest_module {modules}/mod_auth_digest.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule dav_module {modules}/mod_dav.so
LoadModule dav_fs_module {modules}/mod_dav_fs.so
StartServers 1
ServerLimit 2
ThreadsPerChild 32
MaxRequestWorkers 64
KeepAlive On
MaxKeepAliveRequests 0
DavLockDB "{dir}/run/davlock"
DocumentRoot "{dir}/data"
<Directory "{dir}/data">
  Dav On
  {access}
</Directory>
{more}
"""
APACHE_TLS = """\
LoadModule ssl_module {modules}/mod_ssl.so
SSLEngine on
SSLCertificateFile {authority}/server.pem
SSLCertificateKeyFile {authority}/server.pem
SSLCACertificateFile {authority}/ca.pem
SSLVerifyClient {verify}
"""
LIGHTTPD = """\
server.modules = ( "mod_auth", "mod_authn_file", "mod_webdav" )
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{dir}/data"
server.errorlog = "{dir}/log/error.log"
server.upload-dirs = ( "{dir}/tmp" )
server.max-keep-alive-requests = 1000000
server.stream-request-body = 0
mimetype.assign = ( "" => "application/octet-stream" )
webdav.activate = "enable"
webdav.sqlite-db-name = "{dir}/run/dav.db"
{access}
"""
NGINX = """\
load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
daemon off;
user {user};
worker_processes 2;
pid {dir}/run/nginx.pid;
error_log {dir}/log/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000;
  client_body_temp_path {dir}/tmp/body; proxy_temp_path {dir}/tmp/p;
  fastcgi_temp_path {dir}/tmp/f; uwsgi_temp_path {dir}/tmp/u; scgi_temp_path {dir}/tmp/s;
  server {{
    listen 127.0.0.1:{port} backlog=511; root {dir}/data; client_max_body_size 0;
    location / {{
      dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS;
      create_full_put_path off; dav_access user:rw; {access}
    }}
  }}
}}
"""


class DavError(Exception):
    """The server could not be started; the text says why."""


class Dav:
    """A running server of one of KINDS; `with Dav(kind) as server:` starts and ends it.

    auth: "", "basic" or "digest": who may come in is USER with PASSWORD.
    authority: a directory of tests/fakes/authority.py: Apache then speaks TLS.
    client_certificates: and lets in only who has a certificate of the authority.
    """

    def __init__(
        self,
        kind: str,
        *,
        auth: str = "",
        authority: Path | None = None,
        client_certificates: bool = False,
    ) -> None:
        assert kind in KINDS
        self.kind = kind
        self._auth, self._authority = auth, authority
        self._client_certificates = client_certificates
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path()
        self.port = 0

    @property
    def origin(self) -> str:
        """The server's address for HTTP."""
        return f"{'https' if self._authority else 'http'}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"webdav+{self.origin}/dav"

    @property
    def files(self) -> Path:
        return self.directory / "data" / "dav"

    def __enter__(self) -> Dav:
        clear_stale()
        for attempt in range(3):  # the port may be taken between our look and the server's
            self.directory = Path(tempfile.mkdtemp(prefix=NAME))
            self._owner = (self.directory / OWNER).open("wb")
            fcntl.flock(self._owner, fcntl.LOCK_EX)  # the kernel's lock ends with this process
            try:
                self._start()
                return self
            except DavError:
                self._end()
                if attempt == 2:
                    raise
            except BaseException:
                self._end()
                raise
        raise AssertionError

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def restart(self) -> None:
        """End the server without a word, and start it again on the same port and files."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End the server without a word; `start` starts it again."""
        self._kill()

    def start(self) -> None:
        """Start the server again on the same port and files, after `stop`."""
        self._process = self._spawn()
        self._wait()

    def pause(self) -> None:
        """Let it answer nothing more, with connections as they are, until `stop`."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def _start(self) -> None:
        d = self.directory
        for part in ("run", "log", "tmp", "data/dav"):
            (d / part).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        d.chmod(0o755)
        user = pwd.getpwuid(os.getuid()).pw_name
        if user == "root" and self.kind in ("apache", "nginx"):
            user = "www-data"
            for part in ("run", "log", "tmp", "data", "data/dav"):
                shutil.chown(d / part, user, user)
        values = {"dir": d, "port": self.port, "user": user, "modules": "/usr/lib/apache2/modules"}
        access, more = self._access(), ""
        if self._authority:
            verify = "require" if self._client_certificates else "none"
            more = APACHE_TLS.format(**values, authority=self._authority, verify=verify)
        template = {"apache": APACHE, "lighttpd": LIGHTTPD, "nginx": NGINX}.get(self.kind)
        if template:
            text = template.format(**values, access=access, more=more)
            (d / f"{self.kind}.conf").write_text(text)
        self._process = self._spawn()
        self._wait()

    def _access(self) -> str:
        """Write the file of users and return the lines of the configuration that name it."""
        users = self.directory / "users"
        if self._auth == "digest":
            both = hashlib.md5(f"{USER}:{REALM}:{PASSWORD}".encode()).hexdigest()
            users.write_text(f"{USER}:{REALM}:{both}\n")
        else:
            digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
            users.write_text(f"{USER}:{{SHA}}{digest}\n")
        if self.kind == "apache":
            if not self._auth:
                return "Require all granted"
            return (
                f'AuthType {self._auth.title()}\nAuthName "{REALM}"\n'
                f"Auth{self._auth.title()}Provider file\nAuthUserFile {users}\nRequire valid-user"
            )
        if self.kind == "lighttpd" and self._auth:
            backend = "htdigest" if self._auth == "digest" else "htpasswd"
            return (
                f'auth.backend = "{backend}"\nauth.backend.{backend}.userfile = "{users}"\n'
                f'auth.require = ( "/" => ( "method" => "{self._auth}", "realm" => "{REALM}",'
                ' "require" => "valid-user" ) )'
            )
        if self.kind == "nginx" and self._auth == "basic":
            return f'auth_basic "{REALM}"; auth_basic_user_file {users};'
        assert not self._auth
        return ""

    def _command(self) -> list[str]:
        d, address = self.directory, f"127.0.0.1:{self.port}"
        return {
            "apache": ["apache2", "-DFOREGROUND", "-f", f"{d}/apache.conf"],
            "lighttpd": ["lighttpd", "-D", "-f", f"{d}/lighttpd.conf"],
            "nginx": ["nginx", "-c", f"{d}/nginx.conf", "-p", str(d)],
            "rclone": [
                *("rclone", "serve", "webdav", f"{d}/data", "--addr", address),
                *("--config", "/dev/null", "--vfs-cache-mode", "off"),
            ],
            "wsgidav": [
                *(sys.executable, "-m", "wsgidav.server.server_cli", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--root", f"{d}/data", "--auth", "anonymous"),
                *("--server", "cheroot", "--no-config", "-q"),
            ],
        }[self.kind]

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = self._command()
        # Debian keeps servers where only root looks.
        places = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        if shutil.which(command[0], path=places) is None:
            raise DavError(
                f"these tests need {command[0]}.\n"
                f"Install it with `make setup-test` or `apt-get install {PACKAGES}`."
            )
        with (self.directory / "log" / "out").open("ab") as out:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env={**os.environ, "PATH": places},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        (self.directory / "session").write_text(str(process.pid))
        return process

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        said = "\n".join(
            line
            for log in (self.directory / "log").iterdir()
            for line in log.read_text(errors="replace").splitlines()[-8:]
        )
        raise DavError(f"{self.kind} did not start\n{said}")

    def _kill(self) -> None:
        """End the server and its workers, which are in its session."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            self._process = None

    def _end(self) -> None:
        self._kill()
        self._owner.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def clear_stale() -> None:
    """End what dead owners left behind, and remove their directories."""
    for directory in Path(tempfile.gettempdir()).glob(NAME + "*"):
        try:
            session = (directory / "session").read_text()
            with (directory / OWNER).open("rb") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # in use, or being made just now
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = stat.read_text().partition(" (")
            except OSError:
                continue
            program, _, fields = rest.rpartition(") ")
            # The session's number may have been given to another one since.
            if fields.split()[3] == session and program in ("apache2", "nginx"):
                os.kill(int(pid), signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)

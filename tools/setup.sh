#!/bin/sh
# Make this machine ready: Debian packages that are missing, and a virtual environment.
#
#   tools/setup.sh run     what megafs needs to run
#   tools/setup.sh test    and what its tests and linters need (a real Ceph and WebDAV servers among it)
#   tools/setup.sh bench   what `make bench` compares with; nothing else
#   tools/setup.sh boot    what `make boot-test` needs besides; nothing else
#
# For Debian and Ubuntu, as root or with sudo.  Run again at will: it takes a fraction of a second
# when everything is there.  The environment is .venv in the checkout, or $MEGAFS_VENV; the
# interpreter is the first of python3, python3.11 and newer that fits, or $PYTHON.
set -eu
cd "$(dirname "$0")/.."

kind=${1:-run}
case $kind in
run) extras='' ;;
test | bench | boot) extras='[test,lint]' ;;
*) echo "usage: tools/setup.sh run|test|bench|boot" >&2; exit 2 ;;
esac

venv=${MEGAFS_VENV:-$PWD/.venv}
# pyfuse3 is compiled here by pip: hence a compiler, libfuse's headers and pkg-config.
packages='fuse3 libfuse3-dev pkg-config gcc libc6-dev ca-certificates'
if [ "$kind" = test ]; then
    packages="$packages ceph-mon ceph-osd radosgw ceph-common rsync git sqlite3 attr acl"
    packages="$packages tar diffutils findutils util-linux procps"
    packages="$packages apache2-bin lighttpd lighttpd-mod-webdav nginx-light libnginx-mod-http-dav-ext"
    packages="$packages rclone"
    command -v npm >/dev/null || packages="$packages nodejs npm"
fi

say() { echo "setup: $*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        say "this needs root, and there is no sudo: $*"
        exit 1
    fi
}

# Install packages without letting them start a daemon: the tests start their own, elsewhere.
apt_install() {
    if ! command -v apt-get >/dev/null; then
        say "this is not Debian or Ubuntu: please install what corresponds to: $*"
        return 0
    fi
    say "installing $*"
    # shellcheck disable=SC2016
    as_root env DEBIAN_FRONTEND=noninteractive sh -eu -c '
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            printf "#!/bin/sh\nexit 101\n" >$policy
            chmod 755 $policy
            trap "rm -f $policy" EXIT
            trap "exit 130" INT TERM
        fi
        log=$(mktemp)
        install() {
            apt-get install -y --no-install-recommends -qq \
                -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1
        }
        # The lists of a fresh machine are empty or old.
        if ! install "$@"; then
            apt-get update -qq
            if ! install "$@"; then
                tail -n 20 "$log" >&2
                exit 1
            fi
        fi
        rm -f "$log"
    ' sh "$@"
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

fits() {
    command -v "$1" >/dev/null && "$1" - 2>/dev/null <<'P'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))
P
}

find_python() {
    for candidate in ${PYTHON:-python3 /usr/bin/python3 python3.11 python3.12 python3.13 python3.14}; do
        if fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

# S3QL is in Debian 13 and Ubuntu, not in Debian 12.  There Debian 13's package and all that it needs
# (30 MB to fetch, 140 MB on disk) are unpacked below build/s3ql with a libc and a Python of their own;
# the system stays as it is.  build/s3ql/python runs that Python.  The packages come from the mirror
# that apt uses here; where it knows none of Debian's, the comparison goes without S3QL.
unpack_s3ql() {
    place=$PWD/build/s3ql release=trixie
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ ! -x "$place/python" ] || return 0
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1)
    [ -n "$mirror" ] || return 1
    say "unpacking Debian $release's s3ql below build/s3ql"
    rm -rf "$place"
    mkdir -p "$place/apt/lists/partial" "$place/apt/cache/archives/partial"
    : >"$place/apt/status"
    echo "deb [signed-by=$keyring] $mirror $release main" >"$place/apt/sources.list"
    cat >"$place/apt/conf" <<A
Dir::Etc::sourcelist "$place/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$place/apt/lists";
Dir::State::status "$place/apt/status";
Dir::Cache "$place/apt/cache";
APT::Sandbox::User "";
A
    export APT_CONFIG="$place/apt/conf"
    apt-get update -qq && apt-get install -y -qq --download-only --no-install-recommends s3ql \
        >/dev/null && for package in "$place"/apt/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$place" || return 1
    done || return 1
    unset APT_CONFIG
    rm -rf "$place/apt"
    loader=$(echo "$place"/usr/lib/*/ld-linux-*.so.*)
    [ -x "$loader" ] || return 1
    loader=${loader#"$place"/}
    cat >"$place/run" <<R
#!/bin/sh
here=\${0%/*}
PYTHONHOME=\$here/usr exec "\$here/$loader" --library-path "\$here/${loader%/*}" \\
    "\$here/usr/bin/python3" "\$@"
R
    chmod 755 "$place/run"
    # As installing would have done: otherwise the first mount compiles.
    "$place/run" -m compileall -q "$place/usr/lib/python3" "$place/usr/lib/python3.13" \
        "$place/usr/lib/s3ql" >/dev/null || true
    mv "$place/run" "$place/python"
}

if [ "$kind" = bench ]; then
    packages='rclone gocryptfs s3fs cryfs sshfs openssh-server'
    [ -x build/s3ql/python ] || ! apt-cache show s3ql >/dev/null 2>&1 || packages="$packages s3ql"
fi
if [ "$kind" = boot ]; then
    packages='qemu-system-x86 mmdebstrap debian-archive-keyring e2fsprogs util-linux rclone'
fi
missing=
for package in $packages; do
    installed "$package" || missing="$missing $package"
done
# shellcheck disable=SC2086
[ -z "$missing" ] || apt_install $missing
if [ "$kind" = bench ]; then
    installed s3ql || (unpack_s3ql) || say "s3ql cannot be had here; the comparison goes without it"
    exit 0
fi
[ "$kind" != boot ] || exit 0

# megajs, which proves the tests' server of MEGA's protocol.
clients=tests/services/mega/clients
if [ "$kind" = test ] && ! cmp -s "$clients/package-lock.json" "$clients/node_modules/.megafs"; then
    say "installing megajs"
    if npm ci --prefix "$clients" --no-audit --no-fund --silent >&2; then
        cp "$clients/package-lock.json" "$clients/node_modules/.megafs"
    else
        say "megajs cannot be had: the tests that use it are skipped"
    fi
fi

stamp="$kind $(cat pyproject.toml tools/setup.sh | sha256sum | cut -c1-64)"
# An environment made for the tests also serves to run.
if [ -e "$venv/.megafs" ] && [ -x "$venv/bin/python" ]; then
    known=$(cat "$venv/.megafs")
    case $known in "$stamp" | "test ${stamp#* }") exit 0 ;; esac
fi

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    if [ -z "$python" ]; then
        apt_install python3 python3-venv python3-dev
        python=$(find_python)
    fi
    if [ -z "$python" ]; then # Ubuntu 22.04 calls an older one python3
        apt_install python3.11 python3.11-venv python3.11-dev
        python=$(find_python)
    fi
    if [ -z "$python" ]; then
        say "megafs needs Python 3.11 or newer with venv and its headers; none was found"
        exit 1
    fi
    say "making $venv with $python"
    "$python" -m venv "$venv"
fi
say "installing the Python packages"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$extras"
echo "$stamp" >"$venv/.megafs"

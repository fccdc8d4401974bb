#!/bin/sh
# Build the S3 servers that the tests use besides Ceph, once, outside of the checkout.
#
#   tools/engines.sh [versitygw] [minio] [s3rver]
#
# Into $MEGAFS_ENGINES, else ~/.cache/megafs-engines.  On two cores versitygw takes 2.5 minutes of
# CPU and MinIO 5, and a gigabyte of Go's caches: so `make test` builds none, and skips the
# tests of what is not there.  Needs Go; whoever has none gets a line, and no error.  s3rver, which
# ignores If-None-Match, is 14 MB of npm packages and needs Node.
set -eu

engines=${MEGAFS_ENGINES:-${XDG_CACHE_HOME:-$HOME/.cache}/megafs-engines}
mkdir -p "$engines/bin"

say() { echo "engines: $*" >&2; }

build() { # program, module, version
    if [ -x "$engines/bin/$1" ]; then
        return
    fi
    if ! command -v go >/dev/null; then
        say "$1 is not built, and its tests are skipped: there is no Go"
        return
    fi
    say "building $1 $3"
    if ! GOBIN=$engines/bin nice -n 19 go install "$2@$3" >"$engines/$1.log" 2>&1; then
        say "$1 could not be built, and its tests are skipped: $(tail -n 1 "$engines/$1.log")"
    fi
}

install_s3rver() { # version
    if [ -x "$engines/bin/s3rver" ]; then
        return
    fi
    if ! command -v npm >/dev/null; then
        say "s3rver is not installed, and its tests are skipped: there is no npm"
        return
    fi
    say "installing s3rver $1"
    if ! nice -n 19 npm install --no-audit --no-fund --ignore-scripts --prefix "$engines/s3rver" \
        "s3rver@$1" >"$engines/s3rver.log" 2>&1; then
        say "s3rver could not be installed, and its tests are skipped: $(tail -n 1 "$engines/s3rver.log")"
        return
    fi
    chmod +x "$engines/s3rver/node_modules/s3rver/bin/s3rver.js"
    ln -sf ../s3rver/node_modules/s3rver/bin/s3rver.js "$engines/bin/s3rver"
}

for name in "${@:-all}"; do
    case $name in
    versitygw | all) build versitygw github.com/versity/versitygw/cmd/versitygw v1.8.0 ;;
    esac
    case $name in
    minio | all) build minio github.com/minio/minio v0.0.0-20260212201848-7aac2a2c5b7c ;;
    esac
    case $name in
    s3rver | all) install_s3rver 3.7.1 ;;
    esac
done

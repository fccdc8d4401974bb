#!/bin/sh
# Build the S3 servers that the tests use besides Ceph, once, outside of the checkout.
#
#   tools/engines.sh [versitygw] [minio]
#
# Into $MEGAFS_ENGINES, else ~/.cache/megafs-engines.  On two cores versitygw takes 2.5 minutes of
# CPU and MinIO 5, and a gigabyte of Go's caches: so `make test` builds none, and skips the
# tests of what is not there.  Needs Go; whoever has none gets a line, and no error.
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

for name in "${@:-all}"; do
    case $name in
    versitygw | all) build versitygw github.com/versity/versitygw/cmd/versitygw v1.8.0 ;;
    esac
    case $name in
    minio | all) build minio github.com/minio/minio v0.0.0-20260212201848-7aac2a2c5b7c ;;
    esac
done

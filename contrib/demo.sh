#!/bin/sh
# Make a volume in a local directory, mount it, use it, and leave it mounted.
#
#   contrib/demo.sh [MOUNTPOINT]      (`make demo MOUNTPOINT=...` does the same)
#
# The default is ~/megafs or, where something else is there (this checkout, for example),
# ~/megafs-demo, ~/megafs-demo-2 and so on.
#
# Everything it makes lies in .demo/ of the checkout.  Run it again at will.
set -eu
cd "$(dirname "$0")/.."

megafs=${MEGAFS_VENV:-$PWD/.venv}/bin/megafs
demo=$PWD/.demo
url=file://$demo/store
# Some files that everybody has.
source=$("$(dirname "$megafs")/python" -c 'import email; print(email.__path__[0])')
umask 077

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { # show a command, then do it
    shown=
    for word; do
        [ "$word" != "$megafs" ] || word=megafs
        shown="$shown $word"
    done
    printf '$%s\n' "$shown"
    "$@"
}
mounted() { mountpoint -q "$mountpoint" 2>/dev/null; }
mount_it() {
    run "$megafs" mount "$url" "$mountpoint" --passphrase-file "$demo/passphrase" \
        --state-dir "$demo/state" --cache-dir "$demo/cache"
}

# A mount of the demo is taken before a free name: run again, it shows what is there.
source_of() { findmnt -n -o FSTYPE --mountpoint "$1" 2>/dev/null || true; }
is_demo() { [ "$(source_of "$1")" = fuse.megafs ] && [ -e "$1/hello.txt" ]; }
is_free() { [ -z "$(source_of "$1")" ] && [ -z "$(ls -A "$1" 2>/dev/null)" ] && { [ -d "$1" ] || [ ! -e "$1" ]; }; }
default_place() {
    for test in is_demo is_free; do
        for name in megafs megafs-demo megafs-demo-2 megafs-demo-3 megafs-demo-4; do
            if "$test" "$HOME/$name"; then
                printf '%s\n' "$HOME/$name"
                return
            fi
        done
    done
    printf '%s\n' "$HOME/megafs-demo"
}
mountpoint=${1:-$(default_place)}

if mounted; then
    if [ ! -e "$mountpoint/hello.txt" ]; then
        echo "demo: something else is mounted on $mountpoint; give MOUNTPOINT=..." >&2
        exit 1
    fi
    title "The demo is mounted on $mountpoint already"
    run "$megafs" status "$mountpoint"
    exit 0
fi
mkdir -p "$mountpoint" 2>/dev/null || true # a dead mount may be in the way: megafs clears it
if [ -n "$(ls -A "$mountpoint" 2>/dev/null)" ]; then
    echo "demo: $mountpoint is not empty; give another one with MOUNTPOINT=..." >&2
    exit 1
fi

mkdir -p "$demo"
if [ ! -e "$demo/store/keys" ]; then
    title "1. A new volume, in a directory that stands for the cloud"
    head -c 15 /dev/urandom | base64 >"$demo/passphrase"
    echo "(The passphrase is in .demo/passphrase, so that this demo need not ask for one.)"
    run "$megafs" format "$url" --passphrase-file "$demo/passphrase" --state-dir "$demo/state"
fi

title "2. Mount it"
mount_it

title "3. Use it"
echo "Hello, nobody but us can read this." >"$mountpoint/hello.txt"
rm -rf "$mountpoint/email"
run cp -a "$source" "$mountpoint/email"
head -c 16777216 /dev/urandom >"$mountpoint/random.bin"
ln -sf hello.txt "$mountpoint/link"
sum=$(sha256sum <"$mountpoint/random.bin")
run ls -l "$mountpoint"
run df -h "$mountpoint"

title "4. Unmount it: everything is in the store now"
run "$megafs" umount "$mountpoint"
count=$(find "$demo/store" -type f | wc -l)
echo "The store holds $count objects, $(du -sh "$demo/store" | cut -f1). This is all it sees:"
find "$demo/store" -type f -printf '  %8s  %P\n' | sort -k2 | awk 'NR <= 8; END { if (NR > 8) print "  ..." }'
if grep -rqs -e 'nobody but us' -e 'hello.txt' -e 'import annotations' "$demo/store" "$demo/state"; then
    echo "demo: plaintext was found in the store or the state. That is a bug." >&2
    exit 1
fi
echo "Neither the text, nor a file's name, nor a line of Python can be found in it (by grep)."

title "5. Mount it again, with nothing cached, and compare"
rm -rf "$demo/state" "$demo/cache"
mount_it
run diff -r "$source" "$mountpoint/email"
[ "$(sha256sum <"$mountpoint/random.bin")" = "$sum" ]
run cat "$mountpoint/link"
run "$megafs" status "$mountpoint"

title "It is yours now: $mountpoint"
bin=$(dirname "$megafs")
cat <<TEXT
Unmount:   $megafs umount $mountpoint
Remove:    and then  rm -rf $demo

On a real store (AWS, Ceph, MinIO, R2, MEGA S4, ...), from as many machines as you like:
  export PATH=$bin:\$PATH
  export AWS_ACCESS_KEY_ID=...  AWS_SECRET_ACCESS_KEY=...     # or AWS_PROFILE=...
  megafs format s3://BUCKET/PREFIX -o endpoint=https://HOST   # once; without endpoint=: AWS
  megafs mount  s3://BUCKET/PREFIX ~/cloud -o endpoint=https://HOST
  megafs umount ~/cloud
TEXT

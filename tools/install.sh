#!/bin/sh
# Install megafs for all users of this machine, from this checkout:
#
#   tools/install.sh [environment] [commands] [units] [updatedb]      without any: all of them
#
#   environment   a virtual environment of its own in PREFIX/lib/megafs
#   commands      PREFIX/bin/megafs, and what mount(8) and umount(8) call, in /usr/sbin (SBIN)
#   units         systemd's units, in PREFIX/lib/systemd
#   updatedb      fuse.megafs among the file systems that updatedb(8) leaves out: else Debian's daily run
#                 copies the names of all files of a mount of root into a database in plaintext
#
# PREFIX: /usr/local.  DESTDIR: put everything below it, for a package.  Run again at will.
set -eu
cd "$(dirname "$0")/.."

prefix=${PREFIX:-/usr/local}
sbin=${SBIN:-/usr/sbin}
dest=${DESTDIR:-}

environment() {
    python=${PYTHON:-python3}
    "$python" -m venv "$dest$prefix/lib/megafs"
    "$dest$prefix/lib/megafs/bin/python" -m pip install --quiet --upgrade .
}

# A command that runs `main` of a module, by the name that it is called by. Not pip's own script: that
# names the place where it was made, which DESTDIR moves.
command_for() {
    mkdir -p "$(dirname "$dest$1")"
    printf '#!/bin/sh\nexec %s/lib/megafs/bin/python -P -c "%s" "$0" "$@"\n' "$prefix" \
        "import sys; del sys.argv[0]; from $2 import main; main()" >"$dest$1.new"
    chmod 755 "$dest$1.new"
    mv "$dest$1.new" "$dest$1"
}

commands() {
    command_for "$prefix/bin/megafs" megafs.__main__
    command_for "$sbin/mount.megafs" megafs.cli.mount_helper
    ln -sf mount.megafs "$dest$sbin/umount.fuse.megafs"
    ln -sf mount.megafs "$dest$sbin/mount.fuse.megafs"
}

units() {
    mkdir -p "$dest$prefix/lib/systemd/system" "$dest$prefix/lib/systemd/user"
    for kind in system user; do
        from=contrib/systemd
        [ "$kind" = system ] || from=$from/user
        sed "s|/usr/local/bin/megafs|$prefix/bin/megafs|" "$from/megafs@.service" \
            >"$dest$prefix/lib/systemd/$kind/megafs@.service"
        chmod 644 "$dest$prefix/lib/systemd/$kind/megafs@.service"
    done
}

updatedb() {
    file=$dest/etc/updatedb.conf
    [ -e "$file" ] || return 0 # no locate, or one that is configured elsewhere
    if grep -Eq '^[[:space:]]*PRUNEFS[[:space:]]*=.*[" ]fuse\.megafs[" ]' "$file"; then
        return 0
    fi
    cp -p "$file" "$file.megafs-new" # its owner and mode
    if grep -Eq '^[[:space:]]*PRUNEFS[[:space:]]*=[[:space:]]*"' "$file"; then
        sed -E 's/^([[:space:]]*PRUNEFS[[:space:]]*=[[:space:]]*")/\1fuse.megafs /' "$file" >"$file.megafs-new"
    else
        { sed '$a\' "$file"; echo 'PRUNEFS="fuse.megafs"'; } >"$file.megafs-new"
    fi
    mv "$file.megafs-new" "$file"
    echo "install: updatedb leaves megafs mounts out from now on ($file); names that it has already" \
        "taken go with its next run" >&2
}

[ $# -gt 0 ] || set -- environment commands units updatedb
for step; do
    case $step in
    environment | commands | units | updatedb) $step ;;
    *) echo "usage: tools/install.sh [environment] [commands] [units] [updatedb]" >&2; exit 2 ;;
    esac
done

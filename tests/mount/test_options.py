"""Every option is taken or refused with a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megafs.errors import BadUsage
from megafs.mount.option_table import OPTIONS
from megafs.mount.options import parse, split

ENVIRON = {"HOME": "/home/u", "MEGAFS_STATE_DIR": "/s", "MEGAFS_CACHE_DIR": "/c"}
DOCS = Path(__file__).parents[2] / "docs" / "mount-options.md"


def asked(*options: str, url: str = "file:///x"):  # type: ignore[no-untyped-def]
    return parse(url, options, environ=ENVIRON, config={})


def test_what_fstab_and_systemd_pass_means_nothing_here() -> None:
    plain = asked()
    assert plain == asked(
        "defaults,nofail,noauto,auto,user,user=bob,users,nouser,owner,group,"
        "x-systemd.automount,x-systemd.requires=a.service,x-gvfs-show,X-mount.mkdir,comment=a b,"
        "default_permissions,nodiratime,silent,rw"
    )


def test_settings() -> None:
    settings = asked(
        "ro,fsync=local,consistency=strict,cache_size=10G,cache_min_free=50MB,sync_interval=500ms,"
        "deadline=2min,uid=12,gid=root,umask=027,relatime,uploads=2,accept_state,expect_head=ab,"
        "state_dir=/state,cache_dir=/cache"
    ).settings
    assert settings.read_only
    assert settings.fsync == "local"
    assert settings.consistency == "strict"
    assert settings.cache_size == 10 << 30
    assert settings.cache_min_free == 50 * 10**6
    assert settings.sync_interval == 0.5
    assert settings.deadline == 120
    assert (settings.uid, settings.gid, settings.umask) == (12, 0, 0o027)
    assert settings.atime == "relatime"
    assert settings.uploads == 2
    assert settings.accept_state
    assert settings.expect_head == "ab"
    assert (str(settings.state_dir), str(settings.cache_dir)) == ("/state", "/cache")


def test_the_later_one_wins() -> None:
    assert asked("noexec", "exec").kernel == ("exec",)
    assert asked("suid,nosuid").kernel == ("nosuid",)
    assert not asked("ro", "rw").settings.read_only
    assert asked("fsync=local,fsync=store").settings.fsync == "store"


def test_the_kernel_gets_its_own() -> None:
    assert set(asked("ro,noexec,allow_other,dirsync").kernel) == {
        "ro",
        "noexec",
        "allow_other",
        "dirsync",
    }


def test_secrets_name_places() -> None:
    secrets = asked("passphrase_file=/p,key_file=/k").secrets
    assert (secrets.passphrase_file, secrets.key_file) == (Path("/p"), Path("/k"))
    assert asked("passphrase_command=pass show a\\,b").secrets.passphrase_command == "pass show a,b"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a,b=c", [("a", None), ("b", "c")]),
        (",,a,", [("a", None)]),
        (r"a=1\,2\\3,b", [("a", r"1,2\3"), ("b", None)]),
        ('c="x,y",d', [("c", "x,y"), ("d", None)]),
        ("a=b=c", [("a", "b=c")]),
        ("a=", [("a", "")]),
    ],
)
def test_commas(text: str, pieces: list[tuple[str, str | None]]) -> None:
    assert split(text) == pieces


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("casche_size=1G", "unknown option 'casche_size'; did you mean cache_size"),
        ("alow_other", "did you mean allow_other"),
        ("fsync=maybe", "option fsync: 'maybe' is not one of store, local"),
        ("cache_size", r"option cache_size needs a value: .*example: cache_size=20G"),
        ("cache_size=big", "option cache_size: not a size: 'big'"),
        ("deadline=soon", "option deadline: not a length of time"),
        ("uid=nobody-of-that-name", "there is no user"),
        ("umask=99", "not an octal mask"),
        ("uploads=0", "not a number from 1 to 64"),
        ("allow_other=yes", "option allow_other takes no value"),
        ("remount", "cannot be changed while it runs"),
        ("passphrase=geheim", "shows in ps and fstab"),
        ("quota=1G", "belongs to the volume"),
        ("direct_io", "O_DIRECT"),
        ("endpoint=http://x", "is for s3:// stores only"),
        ('context="a', "quotation mark is not closed"),
        ("allow_root,allow_other", "exclude each other"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(BadUsage, match=sentence) as caught:
        asked(text)
    assert "geheim" not in str(caught.value)


def test_the_stores_own_options_reach_it() -> None:
    options = asked("endpoint=http://127.0.0.1:8000,region=here", url="s3://b/p")
    assert options.settings.store_options == {
        "endpoint": "http://127.0.0.1:8000",
        "region": "here",
    }


def test_sloppy_warns() -> None:
    read = parse("file:///x", ["nonsense,ro"], environ=ENVIRON, config={}, sloppy=True)
    assert read.settings.read_only
    assert "unknown option 'nonsense'" in read.warnings[0]


def test_the_configuration_file_comes_first() -> None:
    config = {
        "mount": {"cache_size": "1G", "fsync": "local", "allow_other": True},
        "volume": {"file:///x": {"fsync": "store"}, "file:///y": {"ro": True}},
    }
    read = parse("file:///x", ["cache_size=2G"], environ=ENVIRON, config=config)
    assert read.settings.cache_size == 2 << 30
    assert read.settings.fsync == "store"
    assert read.allow_other
    assert not read.settings.read_only


def test_a_wrong_configuration_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    environ = {**ENVIRON, "MEGAFS_CONFIG": str(path)}
    with pytest.raises(BadUsage, match="there is no such file"):
        parse("file:///x", [], environ=environ)
    path.write_text("[mount\n")
    with pytest.raises(BadUsage, match=re.escape(str(path))):
        parse("file:///x", [], environ=environ)
    path.write_text("[mont]\n")
    with pytest.raises(BadUsage, match=r"unknown table \[mont\]"):
        parse("file:///x", [], environ=environ)
    path.write_text("[mount]\nfsync = 'local'\n")
    path.chmod(0o666)
    with pytest.raises(BadUsage, match="written by everybody"):
        parse("file:///x", [], environ=environ)


def test_every_option_is_documented() -> None:
    text = DOCS.read_text()
    for name, option in OPTIONS.items():
        assert re.search(rf"`{re.escape(name)}[=`]", text), name
        if option.kind != "refused":
            assert option.text in text, name


def test_user_is_the_stores_where_it_has_such_an_option() -> None:
    dav = "webdav+https://cloud.example/x"
    asked = parse(dav, ["user=alice,password_file=p"], config={}, environ={})
    assert asked.settings.store_options["user"] == "alice"
    assert Path(asked.settings.store_options["password_file"]).is_absolute()
    # As mount(8) hands it on for fstab.
    assert "user" not in parse(dav, ["user"], config={}, environ={}).settings.store_options
    assert parse("s3://b", ["user=root"], config={}, environ={}).settings.store_options == {}

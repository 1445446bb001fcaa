"""Layers as directories: dicts to trees and back, what a change is, AUFS's marks as recorded. Nothing is mounted."""

import os
import stat
from pathlib import Path

import pytest

from pytest_isolation import Branch, Change, Special, Symlink, is_opaque, is_whiteout, tree
from pytest_isolation.objects import _layers, union
from pytest_isolation.objects._layers import AufsMarks, OverlayMarks, Stack, find_changes

WHITEOUT = Special("whiteout")


def made(path, given):
    path.mkdir()
    _layers.write_tree(str(path), given)
    return str(path)


def changes(upper, below, merged, marks):
    """`find_changes` with one plain directory below."""

    def find(path):
        return f"{below}/{path}" if os.path.lexists(f"{below}/{path}") else None

    return [tuple(change) for change in find_changes(upper, find, merged, marks)]


def test_a_tree_is_the_dict_it_was_made_from(tmp_path):
    """Text, bytes, directories, links, devices; names with a slash make what they lead through."""
    given = {"a": "text\n", "b": b"\xff", "dir": {"empty": {}}, "link": Symlink("nowhere"), "pipe": Special("fifo")}
    assert tree(made(tmp_path / "one", given)) == given
    assert tree(made(tmp_path / "two", {"deep/er/a": "", "deep": {"b": ""}})) == {"deep": {"er": {"a": ""}, "b": ""}}
    assert tree("/dev")["null"] == Special("char 1:3")


@pytest.mark.parametrize(
    "given, error, fragment",
    [
        ({"../a": ""}, ValueError, r"lower\[0\]: '../a' is no name"),
        ({"/a": ""}, ValueError, "relative"),
        ({"": ""}, ValueError, "relative"),
        ({"a\0": ""}, ValueError, "relative"),
        ({1: ""}, ValueError, "1 is no name"),
        ({"a": 5}, TypeError, r"lower\[0\]\['a'\]=5: allowed are str"),
        ({"d": {"x": None}}, TypeError, r"lower\[0\]\['d'\]\['x'\]=None"),
        ({"d": Special("char 1:3")}, ValueError, "allowed are whiteout and fifo"),
    ],
)
def test_a_dict_that_is_no_tree(given, error, fragment):
    with pytest.raises(error, match=fragment):
        _layers.check_tree(given, "lower[0]")


def test_whiteouts_and_opaque_directories_of_an_overlay(tmp_path):
    """A device 0:0, or an empty file with the attribute; nothing else."""
    made(
        tmp_path / "layer", {"gone": WHITEOUT, "file": "", "full": "x", "dir": {}, "half": {}, "link": Symlink("gone")}
    )
    layer = tmp_path / "layer"
    assert [name for name in os.listdir(layer) if is_whiteout(layer / name)] == ["gone"]
    os.setxattr(layer / "file", "trusted.overlay.whiteout", b"")
    os.setxattr(layer / "full", "trusted.overlay.whiteout", b"")
    assert is_whiteout(layer / "file")
    assert not is_whiteout(layer / "full")
    assert not is_whiteout(layer / "missing")
    assert not is_whiteout(layer / "full/below")
    os.setxattr(layer / "dir", "trusted.overlay.opaque", b"y")
    os.setxattr(layer / "half", "trusted.overlay.opaque", b"x")  # says no more than: there may be whiteouts in it
    assert [name for name in sorted(os.listdir(layer)) if is_opaque(layer / name)] == ["dir"]
    assert not is_opaque(layer / "missing")


def test_layers_have_to_be_apart(tmp_path):
    """Whatever their paths look like."""
    for name in ("one/in", "two", "two-not-in"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("one")
    apart = [("lower[0]", str(tmp_path / "two")), ("upper", str(tmp_path / "two-not-in"))]
    _layers.check_apart(apart)
    with pytest.raises(ValueError, match=r"lower\[1\]='.*/link' is the same directory as lower\[0\]"):
        _layers.check_apart([("lower[0]", str(tmp_path / "one")), ("lower[1]", str(tmp_path / "link"))])
    for pair in ("one", "link/in"), ("one/in", "one"):
        named = [("lower[0]", str(tmp_path / pair[0])), ("upper", str(tmp_path / pair[1])), *apart[:1]]
        with pytest.raises(ValueError, match=r"lies in .*layers have to be apart"):
            _layers.check_apart(named)


def test_removing_a_tree_follows_no_link(tmp_path):
    made(tmp_path / "kept", {"file": "x"})
    folder = made(tmp_path / "gone", {"link": Symlink("../kept"), "dir": {"deep": {"file": ""}}})
    _layers.remove_tree(folder)
    _layers.remove_tree(folder)
    assert os.listdir(tmp_path) == ["kept"]
    assert tree(tmp_path / "kept") == {"file": "x"}


# -- comparing


def test_changes_of_every_kind(tmp_path):
    """Files by content; a directory by its own mode; what is of another type is modified."""
    below = made(
        tmp_path / "below", {"gone": "", "same": "s", "text": "1", "mode": "m", "dir": {"in": ""}, "type": "t"}
    )
    upper = made(tmp_path / "upper", {"gone": WHITEOUT, "never": WHITEOUT, "same": "s", "text": "2", "mode": "m"})
    _layers.write_tree(upper, {"dir": {"in": WHITEOUT, "new": ""}, "type": {"x": {"y": ""}}, "fresh": {"z": ""}})
    for name in ("same", "mode"):
        times = os.stat(f"{below}/{name}")
        os.utime(f"{upper}/{name}", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.chmod(f"{upper}/mode", 0o600)
    os.chmod(f"{upper}/dir", 0o700)
    assert changes(upper, below, upper, OverlayMarks()) == [
        ("dir", "metadata"),
        ("dir/in", "deleted"),
        ("dir/new", "added"),
        ("fresh", "added"),
        ("fresh/z", "added"),
        ("gone", "deleted"),
        ("mode", "metadata"),
        ("text", "modified"),
        ("type", "modified"),
        ("type/x", "added"),
        ("type/x/y", "added"),
    ]


def test_times_and_attributes_are_metadata(tmp_path):
    below = made(tmp_path / "below", {"time": "", "attribute": "", "link": Symlink("a"), "other": Symlink("a")})
    upper = made(tmp_path / "upper", {"time": "", "attribute": "", "link": Symlink("a"), "other": Symlink("b")})
    for name in os.listdir(below):
        for folder in (below, upper):
            os.utime(f"{folder}/{name}", ns=(0, 0), follow_symlinks=False)
    os.utime(f"{upper}/time", ns=(0, 1))
    os.setxattr(f"{upper}/attribute", "trusted.other", b"1")
    os.setxattr(f"{upper}/attribute", "trusted.overlay.origin", b"1")
    found = [("attribute", "metadata"), ("other", "modified"), ("time", "metadata")]
    assert changes(upper, below, upper, OverlayMarks()) == found


# -- AUFS, as recorded on Linux 6.1.192 with aufs 6.1-20240701


@pytest.fixture
def recorded(tmp_path):
    """The branches after the recorded commands, and what merge showed."""
    image1 = made(tmp_path / "image1", {"a": "", "b": "one\n", "dir": {"sub": {"y": ""}, "x": ""}})
    image2 = made(tmp_path / "image2", {"c": "two\n"})
    kept = {".wh..wh.aufs": "", ".wh..wh.orph": {}, ".wh..wh.plnk": {}}
    merge = {"b": "one\nmore\n", "c": "two\n", "dir": {"new": ""}, "e": "", "jhyunlee": {"okman": ""}}
    container = made(tmp_path / "container", {**kept, **merge, ".wh.a": ""})
    Path(container, "dir/.wh..wh..opq").touch()
    merged = made(tmp_path / "merge", merge)
    for folder in (container, merged):
        os.link(f"{folder}/e", f"{folder}/hard")
        os.chmod(f"{folder}/c", 0o600)
        times = os.stat(f"{image2}/c")
        os.utime(f"{folder}/c", ns=(times.st_atime_ns, times.st_mtime_ns))
    return container, [image2, image1], merged


def test_the_changes_of_a_recorded_aufs(recorded):
    container, images, merged = recorded
    found = find_changes(container, Stack(images, AufsMarks()).find, merged, AufsMarks())
    assert found == [
        Change("a", "deleted"),
        Change("b", "modified"),
        Change("c", "metadata"),
        Change("dir", "opaque"),
        Change("dir/new", "added"),
        Change("e", "added"),
        Change("hard", "added"),
        Change("jhyunlee", "added"),
        Change("jhyunlee/okman", "added"),
    ]


def test_aufs_keeps_house_unseen(recorded):
    """Its own files are no changes, wherever they are; nor is the table of inode numbers."""
    container, _, _ = recorded
    Path(container, ".aufs.xino").touch()
    assert [name for name, _ in AufsMarks().entries(container)] == ["a", "b", "c", "dir", "e", "hard", "jhyunlee"]
    assert dict(AufsMarks().entries(container))["a"] is True
    assert AufsMarks().is_opaque(f"{container}/dir")
    assert not AufsMarks().is_opaque(f"{container}/jhyunlee")


def test_branches_are_seen_through_each_other(tmp_path):
    """A whiteout, an opaque directory and a file hide what is below, each from its own level on."""
    top = made(tmp_path / "top", {".wh.gone": "", "dir": {".wh..wh..opq": "", "own": ""}, "file": "", "m": {"t": ""}})
    low = made(tmp_path / "low", {"gone": {"x": ""}, "dir": {"old": ""}, "file": {"x": ""}, "m": {"l": ""}, "only": ""})
    find = Stack([top, low], AufsMarks()).find
    assert find("only") == f"{low}/only"
    assert find("m/t") == f"{top}/m/t"
    assert find("m/l") == f"{low}/m/l"
    assert find("dir/own") == f"{top}/dir/own"
    for hidden in ("gone", "gone/x", "dir/old", "file/x", "nowhere", "nowhere/x", "m/nowhere"):
        assert find(hidden) is None, hidden


def test_the_mount_options_of_aufs():
    """As recorded."""
    branches = [("/run/a/container", "rw"), ("/run/a/image2", "ro+wh"), ("/run/a/image1", "ro+wh")]
    data = "br=/run/a/container=rw:/run/a/image2=ro+wh:/run/a/image1=ro+wh"
    assert union.aufs_data(branches, {}) == data
    assert union.aufs_data(branches, {"udba": "none", "sum": None}) == f"{data},udba=none,sum"


@pytest.mark.parametrize("path", ["/a:b", "/a,b", "/a=b"])
def test_a_path_that_aufs_cannot_quote(path):
    with pytest.raises(ValueError, match="allowed are paths without"):
        union.aufs_data([(path, "rw")], {})


def test_more_branches_than_a_page_holds():
    with pytest.raises(ValueError, match="allowed is less than 4096"):
        union.aufs_data([(f"/{'x' * 100}{number}", "ro") for number in range(50)], {})


def test_the_branches_that_aufs_lists():
    """br0, br2, br10 in their order, brid and xi_path left out; a path may have a = in it."""
    files = {
        "br10": "/run/a/last=one=rr+wh\n",
        "br0": "/run/a/container=rw\n",
        "br2": "/run/a/image2=ro+wh\n",
        "brid0": "64\n",
        "xi_path": "/run/a/container/.aufs.xino\n",
    }
    assert union.parse_branches(files) == (
        Branch(Path("/run/a/container"), "rw"),
        Branch(Path("/run/a/image2"), "ro+wh"),
        Branch(Path("/run/a/last=one"), "rr+wh"),
    )
    line = "67 66 0:56 / /run/a/merge rw,relatime - aufs none rw,si=a785af5e9d7e663b\n"
    (mount,) = _layers.procfs.parse_mountinfo(line)
    assert union.aufs_id(mount.super_options) == "a785af5e9d7e663b"
    assert union.aufs_id(("rw",)) is None


@pytest.mark.parametrize("permission", ["rw", "ro", "rr", "ro+wh", "rr+wh", "rw+nolwh", "rw+coo_reg+moo", "rw+icex"])
def test_permissions_that_aufs_knows(permission):
    union.check_permission(permission, "lower[0]")


@pytest.mark.parametrize("permission", ["xx", "", "RO", "rw+wh", "ro+nolwh", "ro+", "ro+wh+xx", "+wh"])
def test_permissions_that_aufs_ignores(permission):
    """The recorded words: `ignored branch permission xx`; here it is an error."""
    with pytest.raises(ValueError, match=r"lower\[0\]: permission .*allowed are rw, ro and rr"):
        union.check_permission(permission, "lower[0]")


def test_a_whiteout_in_a_dict_is_a_device(tmp_path):
    layer = made(tmp_path / "layer", {"gone": WHITEOUT})
    status = os.lstat(f"{layer}/gone")
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0

"""Chapter 11: union, the same story on another file system.

Before overlayfs came into the kernel (3.18, 2014), containers were built on AUFS, which never did: it is a patch that
some distributions carried. The idea is the same, the words differ: layers are *branches*, each with a permission, and
what is deleted is remembered by files with special names.

                          overlayfs                            AUFS
    layers                lowerdir=, upperdir=, workdir=       br=container=rw:image2=ro+wh:image1=ro+wh
    a is deleted          `a`, a character device 0:0          `.wh.a`, an empty file
    an opaque directory   attribute trusted.overlay.opaque     `.wh..wh..opq` in it, an empty file
    its own housekeeping  the work directory                   `.wh..wh.*` in the writable branch

Every test runs on both; on AUFS only where the kernel has it.
"""

import os
import subprocess

import pytest

from pytest_isolation import Change, is_whiteout, tree

IMAGE1 = {"a": "", "b": "one\n", "dir": {"x": "", "sub": {"y": ""}}}
IMAGE2 = {"c": "two\n"}


@pytest.fixture(params=["overlay", "aufs"])
def union(isolation, request):
    """image2 over image1, and a writable branch over both."""
    return isolation.union_fs(IMAGE2, IMAGE1, backend=request.param)


def test_merge_shows_all_branches(union):
    """All names of both images."""
    assert tree(union.merged) == {"a": "", "b": "one\n", "c": "two\n", "dir": {"x": "", "sub": {"y": ""}}}
    permissions = [branch.permission for branch in union.branches]
    assert permissions == ["rw", "ro+wh", "ro+wh"]
    fstype = subprocess.check_output(["stat", "-f", "-c", "%T", union.merged], text=True).strip()
    assert fstype == {"overlay": "overlayfs", "aufs": "aufs"}[union.backend]


def test_changes_land_in_the_writable_branch(union):
    """New, deleted, changed: the images are as they were, and the list of changes is the same on both."""
    before = [tree(image) for image in union.lower]
    (union.merged / "jhyunlee").mkdir()
    (union.merged / "jhyunlee/okman").touch()
    (union.merged / "a").unlink()
    with open(union.merged / "b", "a") as file:
        file.write("more\n")
    (union.merged / "c").chmod(0o600)
    assert sorted(os.listdir(union.merged)) == ["b", "c", "dir", "jhyunlee"]
    assert [tree(image) for image in union.lower] == before
    assert (union.upper / "b").read_text() == "one\nmore\n"
    assert union.changes() == [
        Change("a", "deleted"),
        Change("b", "modified"),
        Change("c", "metadata"),
        Change("jhyunlee", "added"),
        Change("jhyunlee/okman", "added"),
    ]


def test_the_whiteout_has_another_name(union):
    """A device of the same name on overlayfs; a file `.wh.a` on AUFS."""
    (union.merged / "a").unlink()
    assert union.is_whiteout("a")
    if union.backend == "overlay":
        assert union.whiteout("a") == union.upper / "a"
        assert is_whiteout(union.upper / "a")
    else:
        assert union.whiteout("a") == union.upper / ".wh.a"
        assert (union.upper / ".wh.a").stat().st_size == 0
        assert not (union.upper / "a").exists()


def test_the_opaque_directory_has_another_mark(union):
    """An attribute on overlayfs; a file `.wh..wh..opq` on AUFS."""
    subprocess.run(["rm", "-r", union.merged / "dir"], check=True)
    (union.merged / "dir").mkdir()
    (union.merged / "dir/new").touch()
    assert os.listdir(union.merged / "dir") == ["new"]
    assert union.is_opaque("dir")
    assert (union.upper / "dir/.wh..wh..opq").exists() is (union.backend == "aufs")
    assert union.changes() == [Change("dir", "opaque"), Change("dir/new", "added")]


def test_where_its_own_things_are(union):
    """Overlayfs has a directory beside the upper one; AUFS keeps house in the writable branch, hidden from view."""
    (union.merged / "new").touch()
    hidden = {name for name in os.listdir(union.upper) if name.startswith(".wh..wh.")}
    if union.backend == "overlay":
        assert hidden == set()
    else:
        assert {".wh..wh.aufs", ".wh..wh.orph", ".wh..wh.plnk"} <= hidden
    assert not any(name.startswith(".wh.") for name in os.listdir(union.merged))
    assert union.changes() == [Change("new", "added")]

"""Random operations on a merged overlay and on a plain directory: the same tree, and changes that say all of it."""

import contextlib
import errno
import os
import shutil
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_isolation import OverlayFs, Tmpfs

LOWER = (
    {"a": "upper a", "d": {"a": "d/a", "e": {"b": "d/e/b"}}, "c": {}},
    {"a": "hidden", "b": "b", "d": {"b": "d/b", "e": {"a": "", "e": {"c": "deep"}}}, "e": {"a": "e/a"}},
)
NAMES = st.sampled_from("abcde")
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TEXT = st.text("xy", max_size=3)
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), PATHS, TEXT),
    st.tuples(st.just("append"), PATHS, TEXT),
    st.tuples(st.just("truncate"), PATHS, st.integers(0, 4)),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("rmtree"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o700, 0o755, 0o644])),
    st.tuples(st.just("symlink"), PATHS, NAMES),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("mkfifo"), PATHS),
    st.tuples(st.just("setxattr"), PATHS, st.sampled_from([b"1", b"2"])),
)


def rename(source, target):
    """rename(2); a directory of a lower layer is refused with EXDEV, and then moved as mv(1) moves it."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(target)
        copy(source, target)
        shutil.rmtree(source)


def copy(source, target):
    """With mode and attributes, links as links; of hard links each by itself."""
    mode = os.lstat(source).st_mode
    if stat.S_ISDIR(mode):
        os.mkdir(target)
        for name in os.listdir(source):
            copy(f"{source}/{name}", f"{target}/{name}")
        shutil.copystat(source, target)
    elif stat.S_ISFIFO(mode):
        os.mkfifo(target)
        shutil.copystat(source, target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def write(path, text, flag=os.O_TRUNC):
    if not os.path.lexists(path) or stat.S_ISREG(os.lstat(path).st_mode):  # a fifo would block
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o644)
        os.write(fd, text.encode())
        os.close(fd)


def unless_link(call, wanted=os.path.lexists):
    """Through a link it would reach out of the tree."""

    def attempt(path, *words):
        if not os.path.islink(path) and wanted(path):
            call(path, *words)

    return attempt


CALLS = {
    "write": write,
    "append": lambda path, text: write(path, text, os.O_APPEND),
    "truncate": unless_link(os.truncate, os.path.isfile),
    "rename": rename,
    "link": lambda path, other: os.link(path, other, follow_symlinks=False),
    "rmtree": unless_link(shutil.rmtree, os.path.isdir),
    "chmod": unless_link(os.chmod),
    "symlink": lambda path, name: os.symlink(name, path),
    "setxattr": unless_link(lambda path, value: os.setxattr(path, "trusted.test", value)),
}


def do(root, operation):
    """Do it below `root`; what comes of it: None, or the errno."""
    name, path, *words = operation
    if name in {"rename", "link"}:
        words = [f"{root}/{words[0]}"]
    try:
        CALLS.get(name, getattr(os, name, None))(f"{root}/{path}", *words)
    except OSError as error:
        return error.errno
    return None


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def look(root):
    """Everything below, {path: what it is}."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = f"{folder}/{name}"
            status = os.lstat(path)
            what = [stat.filemode(status.st_mode)]
            if stat.S_ISLNK(status.st_mode):
                what.append(os.readlink(path))
            else:
                what += [os.getxattr(path, "trusted.test")] if "trusted.test" in os.listxattr(path) else []
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    what.append(file.read())
            found[path.removeprefix(f"{root}/")] = what
    return found


def replay(changes, merged, target):
    """Make of a copy of the lower layers what the changes say, the new content taken from `merged`."""
    for path, kind in changes:  # sorted: a directory before what is in it
        here, there = f"{merged}/{path}", f"{target}/{path}"
        if kind == "metadata":
            os.chmod(there, os.lstat(here).st_mode & 0o7777)
            for name in os.listxattr(here):
                os.setxattr(there, name, os.getxattr(here, name))
            continue
        assert os.path.lexists(there) is (kind != "added"), (path, kind)
        remove(there)
        if kind == "deleted":
            continue
        if os.path.isdir(here) and not os.path.islink(here):
            os.mkdir(there)
            shutil.copystat(here, there)
        else:
            copy(here, there)


@pytest.mark.parametrize(
    "options",
    [{"redirect_dir": "off"}, {"redirect_dir": "on"}, {"redirect_dir": "on", "metacopy": "on"}, {"index": "on"}],
    ids=str,
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=st.lists(OPERATIONS, max_size=25))
def test_a_merged_overlay_is_like_a_plain_directory(options, operations):
    """Every operation gives the same result, the trees are the same, the lower layers stay, and `changes` says all."""
    with Tmpfs() as home, OverlayFs(*LOWER, options=options) as overlay:
        plain, again = f"{home.path}/plain", f"{home.path}/again"
        for target in (plain, again):
            copy(str(overlay.merged), target)
        lower = [look(layer) for layer in overlay.lower]
        for operation in operations:
            assert do(overlay.merged, operation) == do(plain, operation), operation
        after = look(overlay.merged)
        assert after == look(plain)
        assert [look(layer) for layer in overlay.lower] == lower
        replay(overlay.changes(), overlay.merged, again)
        assert look(again) == after

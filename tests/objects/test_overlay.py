"""Overlays and unions on the real kernel, by the word of mountinfo, stat and the layers themselves."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_isolation import (
    Branch,
    Change,
    IsolationError,
    KernelError,
    OverlayFs,
    Special,
    Symlink,
    UnionFs,
    Unsupported,
    eventually,
    inside,
    is_opaque,
    is_whiteout,
    tree,
)
from pytest_isolation._kernel import procfs, syscalls
from pytest_isolation._state import ledger, mounts


def mounted(path):
    """The lines of mountinfo for exactly this place."""
    return [mount for mount in procfs.mounts("thread-self") if mount.target == str(path)]


def changed(overlay):
    return [tuple(change) for change in overlay.changes()]


@pytest.fixture
def nothing_new():
    """A context manager: no mount, and nothing in the run's directory, is there after the block and was not before."""

    class Compare:
        def __enter__(self):
            self.before = self.look()

        def __exit__(self, *_):
            assert self.look() == self.before

        @staticmethod
        def look():
            here = {(mount.mount_id, mount.target) for mount in procfs.mounts("thread-self")}
            return here, sorted(os.listdir(mounts.directory()))

    return Compare()


def test_it_is_an_overlay_and_ready(overlay_fs):
    """By the kernel's word; the default has one file, and its layers are where they say."""
    (mount,) = mounted(overlay_fs.merged)
    assert mount.fstype == "overlay"
    assert f"upperdir={overlay_fs.upper}" in mount.super_options
    assert f"workdir={overlay_fs.work}" in mount.super_options
    assert tree(overlay_fs.merged) == tree(overlay_fs.lower[0]) == {"a": "a\n"}
    assert overlay_fs.changes() == []


def test_the_machine_does_not_see_it(overlay_fs):
    """Neither its mount, nor the files of its layers."""
    machine = mounts.spawner().mounts_of_machine
    shown = subprocess.check_output(
        ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{machine}", "cat", "/proc/self/mountinfo"], text=True
    )
    assert str(overlay_fs.merged.parents[1]) not in shown


def test_commands_and_threads_see_it(overlay_fs, isolation):
    """Of every object, made before or after, and threads that are started now."""
    for place in (isolation.netns(), isolation.pid_namespace(), isolation.mount_namespace()):
        assert place.run(["ls", overlay_fs.merged]).stdout == "a\n"
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(os.listdir(overlay_fs.merged)))
    thread.start()
    thread.join()
    assert seen == ["a"]


@pytest.mark.parametrize("overlay_fs", [{"readonly": True}], indirect=True)
def test_a_fixture_takes_arguments(overlay_fs):
    """Read-only: nothing can be written, and there is no upper layer to be asked for."""
    with pytest.raises(OSError, match="Read-only"):
        (overlay_fs.merged / "new").touch()
    assert overlay_fs.changes() == []
    for name in ("upper", "work"):
        with pytest.raises(IsolationError, match="read-only"):
            getattr(overlay_fs, name)


def test_layers_of_every_form(isolation, tmp_path):
    """A path, text of a path, a dict; the first is the uppermost, and a whiteout in a dict hides."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one/x").write_text("one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/x").write_text("two")
    (tmp_path / "two/y").write_text("two")
    top = {"y": Special("whiteout"), "link": Symlink("x")}
    overlay = isolation.overlay_fs(top, tmp_path / "one", str(tmp_path / "two"))
    assert tree(overlay.merged) == {"x": "one", "link": Symlink("x")}
    assert overlay.lower[1:] == (tmp_path / "one", tmp_path / "two")
    (overlay.merged / "y").touch()
    assert changed(overlay) == [("y", "added")]


def test_names_that_separate_options(isolation, tmp_path):
    """Colons, commas, backslashes and spaces in every path."""
    for name in ("low:er,1\\", "low er=2", "up:per,\\", "wo:rk,", "mer:ged,"):
        (tmp_path / name).mkdir()
    (tmp_path / "low:er,1\\/a").touch()
    (tmp_path / "low er=2/b").touch()
    home = isolation.tmpfs().path
    for name in ("up:per,\\", "wo:rk,"):
        (home / name).mkdir()
    overlay = isolation.overlay_fs(
        tmp_path / "low:er,1\\",
        tmp_path / "low er=2",
        upper=home / "up:per,\\",
        work=home / "wo:rk,",
        merged=tmp_path / "mer:ged,",
    )
    (overlay.merged / "c").touch()
    assert sorted(os.listdir(overlay.merged)) == ["a", "b", "c"]
    assert os.listdir(home / "up:per,\\") == ["c"]


def test_four_hundred_layers(isolation):
    """More than one page of options holds."""
    overlay = isolation.overlay_fs(*[{f"f{number}": ""} for number in range(400)])
    assert len(os.listdir(overlay.merged)) == 400
    (overlay.merged / "f399").unlink()
    assert changed(overlay) == [("f399", "deleted")]


def test_given_directories_stay(isolation, tmp_path):
    """What the test gave is its own; the work directory beside it, which it did not give, goes."""
    home = isolation.tmpfs().path
    for name in ("lower", "upper"):
        (home / name).mkdir()
    with OverlayFs(home / "lower", upper=home / "upper", merged=tmp_path) as overlay:
        assert overlay.merged == tmp_path
        (overlay.merged / "new").touch()
        assert overlay.work.parent == home
    assert sorted(os.listdir(home)) == ["lower", "upper"]
    assert os.listdir(home / "upper") == ["new"]
    assert os.listdir(tmp_path) == []


def test_an_upper_layer_that_has_changes_already(isolation):
    """A second overlay on the same layers shows what the first left, and its changes."""
    home = isolation.tmpfs().path
    for name in ("lower", "upper", "work"):
        (home / name).mkdir()
    (home / "lower/a").touch()
    for _ in range(2):
        with OverlayFs(home / "lower", upper=home / "upper", work=home / "work") as overlay:
            (overlay.merged / "a").unlink(missing_ok=True)
            assert changed(overlay) == [("a", "deleted")]


@pytest.mark.parametrize("redirect", ["on", "off"])
def test_a_renamed_directory(isolation, redirect):
    """Moved in place where the kernel may, copied where it may not: the changes are the same."""
    overlay = isolation.overlay_fs({"old": {"x": "1", "sub": {"y": ""}}}, options={"redirect_dir": redirect})
    subprocess.run(["mv", overlay.merged / "old", overlay.merged / "new"], check=True)
    assert os.path.exists(overlay.upper / "new/x") is (redirect == "off")
    assert changed(overlay) == [
        ("new", "added"),
        ("new/sub", "added"),
        ("new/sub/y", "added"),
        ("new/x", "added"),
        ("old", "deleted"),
    ]


def test_a_directory_renamed_over_another(isolation):
    """What lay below the new name shows no more; the kernel says so by where it came from."""
    lower = {"old": {"x": ""}, "new": {"y": ""}}
    overlay = isolation.overlay_fs(lower, options={"redirect_dir": "on"})
    (overlay.merged / "new/y").unlink()
    (overlay.merged / "old").rename(overlay.merged / "new")
    assert changed(overlay) == [("new", "opaque"), ("new/x", "added"), ("old", "deleted")]


def test_metadata_without_content(isolation):
    """Under `metacopy=on` the upper file has no content of its own: the change is the same."""
    overlay = isolation.overlay_fs({"a": "text"}, options={"metacopy": "on", "redirect_dir": "on"})
    (overlay.merged / "a").chmod(0o600)
    assert (overlay.upper / "a").stat().st_blocks == 0
    assert changed(overlay) == [("a", "metadata")]


def test_a_file_opened_for_writing_and_left_alone(overlay_fs):
    """It was copied up, and is no change."""
    os.close(os.open(overlay_fs.merged / "a", os.O_WRONLY))
    assert (overlay_fs.upper / "a").exists()
    assert overlay_fs.changes() == []


def test_a_directory_in_the_place_of_a_file_and_back(isolation):
    overlay = isolation.overlay_fs({"file": "", "dir": {"x": ""}})
    (overlay.merged / "file").unlink()
    (overlay.merged / "file").mkdir()
    (overlay.merged / "file/in").touch()
    (overlay.merged / "dir/x").unlink()
    (overlay.merged / "dir").rmdir()
    (overlay.merged / "dir").touch()
    assert changed(overlay) == [("dir", "modified"), ("file", "modified"), ("file/in", "added")]


def test_the_kernels_own_words(isolation, nothing_new):
    """For an option and for its value; what is left is what was."""
    with nothing_new:
        for options, words in (
            ({"workerdir": "w"}, "overlay: Unknown parameter 'workerdir'"),
            ({"redirect_dir": "banana"}, "overlay: Bad value for 'redirect_dir'"),
        ):
            with pytest.raises(KernelError, match=words) as refused:
                isolation.overlay_fs(options=options)
            assert refused.value.message == words
            assert refused.value.errno == errno.EINVAL


# -- bad input: an error that names it, and nothing is made


def directories(home, *names):
    for name in names:
        (home / name).mkdir(parents=True)
    (home / "file").touch()
    return home


BAD = {
    "missing": (lambda h: ((h / "no",), {}), ValueError, r"lower\[0\]=.*no'\): No such file.*allowed is an existing"),
    "file": (lambda h: ((h / "file",), {}), ValueError, r"lower\[0\]=.*is no directory"),
    "empty": (lambda _: (("",), {}), ValueError, r"lower\[0\]='': allowed is a directory"),
    "NUL": (lambda _: (("/a\0b",), {}), ValueError, "without NUL"),
    "number": (lambda _: ((5,), {}), TypeError, r"lower\[0\]=5: allowed are"),
    "repeated": (lambda h: ((h / "a", h / "b", h / "a"), {}), ValueError, r"lower\[2\].*same directory as lower\[0\]"),
    "nested": (lambda h: ((h / "a", h / "a/in"), {}), ValueError, r"lower\[1\].*lies in lower\[0\]"),
    "in upper": (lambda h: ((h / "a/in",), {"upper": h / "a"}), ValueError, r"lower\[0\].*lies in upper"),
    "upper in lower": (lambda h: ((h / "a",), {"upper": h / "a/in"}), ValueError, r"upper.*lies in lower\[0\]"),
    "upper is lower": (lambda h: ((h / "a",), {"upper": h / "a"}), ValueError, "upper.*same directory"),
    "work in upper": (lambda h: ((h / "b",), {"upper": h / "a", "work": h / "a/in"}), ValueError, "work.*lies in up"),
    "no upper": (lambda h: ((h / "a",), {"upper": h / "no"}), ValueError, "upper=.*No such file"),
    "no merged": (lambda h: ((h / "a",), {"merged": h / "file"}), ValueError, "merged=.*is no directory"),
    "work alone": (lambda h: ((), {"work": h / "a"}), ValueError, "work= goes with upper="),
    "readonly upper": (lambda h: ((), {"upper": h / "a", "readonly": True}), ValueError, "readonly=True has no upper"),
    "own option": (lambda _: ((), {"options": {"lowerdir": "/"}}), ValueError, "this one is given by lower layers"),
    "odd option": (lambda _: ((), {"options": {"a,b": "/"}}), ValueError, "allowed are a name"),
    "elsewhere": (lambda h: ((), {"upper": h / "a", "work": "/dev/shm"}), ValueError, "work=.*another file system"),
    "mount point": (lambda h: ((), {"upper": h}), ValueError, "is a mount point: pass .* as work="),
}


@pytest.mark.parametrize("make, error, fragment", BAD.values(), ids=BAD)
def test_layers_that_cannot_be(isolation, nothing_new, make, error, fragment):
    home = directories(isolation.tmpfs().path, "a/in", "b")
    args, options = make(home)
    with nothing_new, pytest.raises(error, match=fragment):
        isolation.overlay_fs(*args, **options)
    assert sorted(os.listdir(home)) == ["a", "b", "file"]


def test_an_upper_layer_on_an_overlay(isolation, nothing_new):
    """Which cannot carry one, as the kernel says."""
    below = isolation.overlay_fs()
    directories(below.merged, "upper", "work")
    with (
        nothing_new,
        pytest.raises((KernelError, ValueError), match=r"not supported as upperdir|cannot carry an upper"),
    ):
        isolation.overlay_fs(upper=below.merged / "upper", work=below.merged / "work")


@pytest.mark.parametrize("upper, work", [("/proc/self", "/proc/tty"), ("/sys/kernel", "/sys/fs")])
def test_an_upper_layer_on_what_is_no_disk(isolation, nothing_new, upper, work):
    """The kernel takes /sys, and silently makes a read-only overlay of it."""
    with nothing_new, pytest.raises((KernelError, ValueError), match=r"is on (proc|sysfs).*upper layer"):
        isolation.overlay_fs(upper=upper, work=work)


@pytest.mark.parametrize("kind", ["overlay_fs", "union_fs", "tmpfs", "loop_device"])
def test_an_unknown_option(isolation, nothing_new, kind):
    """Named, with those there are."""
    with nothing_new, pytest.raises(TypeError, match=rf"{kind}\(\) has no argument 'no_such_option'; it takes"):
        getattr(isolation, kind)(no_such_option=1)


def test_inside_another_mount_namespace(isolation, mount_namespace):
    """What pytest itself is to see cannot be made there; the error says so."""
    mounts.enter()
    with inside(mount_namespace), pytest.raises(IsolationError, match="mount namespace"):
        isolation.overlay_fs()


# -- bad luck: its end


@pytest.mark.parametrize("how", ["open", "cwd of a command", "mounted below"])
def test_an_unmount_while_busy(how, nothing_new, isolation):
    """A finding that says who, and it is gone all the same."""
    space = isolation.netns()
    with nothing_new:
        overlay = OverlayFs({"dir": {"a": ""}})
        if how == "open":
            file = os.open(overlay.merged / "dir/a", os.O_RDONLY)
            fragment = rf"process {os.getpid()} .*: fd {file} is {overlay.merged}/dir/a"
        elif how == "mounted below":
            syscalls.mount("tmpfs", overlay.merged / "dir", "tmpfs")
            fragment = f"a mount at {overlay.merged}/dir"
        else:
            process = space.popen(["sleep", 1000], cwd=overlay.merged / "dir")
            fragment = rf"process {process.pid} \(sleep 1000\): cwd is {overlay.merged}/dir"
        with pytest.raises(ExceptionGroup) as finding:
            overlay.close()
        (error,) = finding.value.exceptions
        assert error.errno == errno.EBUSY
        assert error.__notes__ == [f"while closing {overlay}: unmount {overlay.merged}"]
        with pytest.raises(KernelError, match=fragment):
            raise error
        if how == "open":
            os.close(file)


def test_closed_after_outside_removal(nothing_new):
    """Unmounted by somebody else, or mounted over: it closes quietly."""
    with nothing_new:
        overlay = OverlayFs()
        syscalls.umount2(overlay.merged)
        overlay.close()
    with nothing_new:
        overlay = OverlayFs()
        syscalls.mount("tmpfs", overlay.merged, "tmpfs")
        overlay.close()


def test_closed_on_a_thread_inside_another_mount_namespace(nothing_new, isolation, tmp_path):
    """It is unmounted where it was mounted."""
    space = isolation.mount_namespace()
    with nothing_new:
        overlay = OverlayFs(merged=tmp_path)
        with inside(space):
            overlay.close()


def test_a_copy_of_the_mounts_does_not_keep_it(isolation):
    """Not even a private one: the kernel takes a mount away with the directory that it is mounted on."""
    overlay = OverlayFs()
    space = isolation.mount_namespace()
    assert any(mount.fstype == "overlay" for mount in space.mounts())
    overlay.close()
    assert not any(mount.fstype == "overlay" for mount in space.mounts())


def test_the_ledger_s_directory_may_be_a_mount_point(nothing_new, tmp_path):
    """As a keeper sees the run's, that was started in the run's mount namespace."""
    path = tmp_path / "directory"
    with nothing_new:
        path.mkdir()
        syscalls.mount("tmpfs", path, "tmpfs")
        (path / "file").touch()
        ledger.remove({"kind": "directory", "path": str(path)})
    assert not path.exists()


def test_after_sigkill_nothing_is_left(tmp_path, gone):
    """The mounts go with the process; what lies beside a given upper layer, on disk, goes by the ledger."""
    for name in ("lower", "upper"):
        (tmp_path / name).mkdir()
    code = """
import os, sys, time
from pytest_isolation import OverlayFs, LoopDevice
given = OverlayFs(sys.argv[1] + "/lower", upper=sys.argv[1] + "/upper")
loop = LoopDevice()
print(given.merged.parents[1], given.work, loop.device.name, flush=True)
time.sleep(1000)
"""
    command = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            folder, work, loop = process.stdout.readline().split()
            backing = Path(f"/sys/block/{loop}/loop/backing_file")
            assert folder in backing.read_text()
            assert Path(work).is_dir()
        finally:
            process.kill()
    gone(process.pid)

    def all_gone():
        assert not os.path.exists(folder)
        assert not os.path.exists(work)
        assert not backing.exists() or folder not in backing.read_text()

    eventually(all_gone, timeout=30.0)
    assert sorted(os.listdir(tmp_path)) == ["lower", "upper"]


# -- union_fs


def test_a_union_of_overlay(isolation):
    """The same interface as with AUFS."""
    union = isolation.union_fs({"a": "", "dir": {"x": ""}}, Branch({"b": ""}, "ro+wh"))
    assert union.backend == "overlay"
    assert [branch.permission for branch in union.branches] == ["rw", "ro+wh", "ro+wh"]
    assert [branch.path for branch in union.branches] == [union.upper, *union.lower]
    (union.merged / "b").unlink()
    subprocess.run(["rm", "-r", union.merged / "dir"], check=True)
    (union.merged / "dir").mkdir()
    assert union.is_whiteout("b")
    assert is_whiteout(union.whiteout("b"))
    assert not union.is_whiteout("a")
    assert union.is_opaque("dir")
    assert is_opaque(union.upper / "dir")
    assert changed(union) == [("b", "deleted"), ("dir", "opaque")]


def test_a_given_upper_branch(isolation):
    """Which stays, and nothing beside it does."""
    home = directories(isolation.tmpfs().path, "lower", "upper")
    with UnionFs(home / "lower", upper=home / "upper") as union:
        (union.merged / "new").touch()
    assert tree(home) == {"lower": {}, "upper": {"new": ""}, "file": ""}


@pytest.mark.parametrize(
    "args, options, error, fragment",
    [
        ((), {"backend": "unionfs"}, ValueError, "backend='unionfs': allowed are overlay, aufs"),
        ((Branch({}, "xx"),), {"backend": "aufs"}, ValueError, r"lower\[0\]: permission 'xx'"),
        ((Branch({}, "rw"),), {"backend": "aufs"}, ValueError, "the upper branch is rw"),
        ((Branch({}, "rr"),), {}, ValueError, "allowed with backend='overlay' are ro"),
        (("/no/such",), {"backend": "aufs"}, ValueError, r"lower\[0\]='/no/such': No such file"),
        (("/usr", "/usr"), {"backend": "aufs"}, ValueError, r"same directory as lower\[0\]"),
        (("/usr", "/usr/bin"), {"backend": "aufs"}, ValueError, r"lies in lower\[0\]"),
        ((), {"backend": "aufs", "options": {"br": "/"}}, ValueError, "branches are given as lower="),
        ((), {"backend": "aufs", "options": {"add:1": "/"}}, ValueError, "branches are given as lower="),
    ],
)
def test_unions_that_cannot_be(isolation, nothing_new, args, options, error, fragment):
    with nothing_new, pytest.raises(error, match=fragment):
        isolation.union_fs(*args, **options)


@pytest.mark.skipif(
    "nodev\taufs\n" in Path("/proc/filesystems").read_text(), reason="isolation: union_fs: AUFS is here"
)
def test_a_kernel_without_aufs(nothing_new):
    """Says so, and what to do; nothing is left."""
    with nothing_new, pytest.raises(Unsupported, match=r"no AUFS.*Remedy: a kernel with AUFS"):
        UnionFs(backend="aufs")


def test_a_name_outside_the_union(isolation):
    union = isolation.union_fs()
    for name in ("", "/a", "../a", "a/../../b"):
        with pytest.raises(ValueError, match="relative to merged"):
            union.is_whiteout(name)


def test_change_is_a_pair(overlay_fs):
    """And is readable where an assertion fails."""
    (overlay_fs.merged / "a").unlink()
    (change,) = overlay_fs.changes()
    path, kind = change
    assert (path, kind) == ("a", "deleted")
    assert repr(change) == "Change(path='a', kind='deleted')"
    assert change == Change("a", "deleted")

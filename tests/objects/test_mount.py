"""mount namespaces, by the word of mountinfo, inside and outside."""

import os
import subprocess
from pathlib import Path

import pytest

from pytest_isolation import ClosedError, KernelError, MountNamespace, inside


def mountinfo(place=None):
    """{target: whole line} of a mount namespace, or of pytest's own."""
    path = "/proc/self/mountinfo"
    text = Path(path).read_text() if place is None else place.run(["cat", path]).stdout
    return {line.split()[4]: line for line in text.splitlines()}


def group(line, word):
    """The peer group in a line of mountinfo: `group(line, "shared")`."""
    return next((field.partition(":")[2] for field in line.split() if field.startswith(word + ":")), None)


def test_a_mount_is_seen_inside_only(mount_namespace, isolation, tmp_path):
    """In its df, and not in another's; pytest's own list is unchanged."""
    other, before = isolation.mount_namespace(), mountinfo()
    mount_namespace.tmpfs(tmp_path, size="1m")
    assert " - tmpfs tmpfs " in mountinfo(mount_namespace)[str(tmp_path)]
    assert "size=1024k" in mountinfo(mount_namespace)[str(tmp_path)]
    assert str(tmp_path) in mount_namespace.run(["df", tmp_path]).stdout
    assert str(tmp_path) not in mountinfo(other)
    assert mountinfo() == before
    mount_namespace.run(["touch", tmp_path / "inside"])
    assert os.listdir(tmp_path) == []


def test_its_end_is_the_end_of_its_mounts(isolation, tmp_path):
    """Even of a lazily unmounted one, and of what holds it."""
    with MountNamespace() as space:
        space.tmpfs(tmp_path)
        assert str(tmp_path) in mountinfo(space)
    assert str(tmp_path) not in mountinfo()


def test_mounts_are_as_the_kernel_lists_them(mount_namespace, tmp_path):
    """The same lines, typed, a name with spaces and all."""
    odd = tmp_path / "a b\\c\td"
    odd.mkdir()
    mount_namespace.tmpfs(odd, size=4096, mode=0o700)
    lines = mount_namespace.run(["cat", "/proc/self/mountinfo"]).stdout.splitlines()
    mounts = mount_namespace.mounts()
    assert [mount.mount_id for mount in mounts] == [int(line.split()[0]) for line in lines]
    mount = mount_namespace.find(odd)
    assert (mount.target, mount.fstype, mount.source, mount.propagation) == (str(odd), "tmpfs", "tmpfs", "private")
    assert {"size=4k", "mode=700"} <= set(mount.super_options)
    assert {"nosuid", "nodev"} <= set(mount.options)
    assert mount.root == "/"
    assert mount_namespace.find("/no/such/target") is None


def test_bind_a_directory_and_a_file(mount_namespace, tmp_path):
    """Read-only where asked; the source stays writable elsewhere."""
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "source/file").write_text("bound")
    (tmp_path / "file").touch()
    mount_namespace.bind(tmp_path / "source", tmp_path / "target", readonly=True)
    mount_namespace.bind(tmp_path / "source/file", tmp_path / "file")
    assert mount_namespace.run(["cat", tmp_path / "target/file", tmp_path / "file"]).stdout == "boundbound"
    assert mount_namespace.run(["touch", tmp_path / "target/new"], check=False).returncode != 0
    mount_namespace.run(["touch", tmp_path / "source/new"])
    assert " ro," in mountinfo(mount_namespace)[str(tmp_path / "target")]
    assert os.listdir(tmp_path / "target") == []


def test_a_recursive_bind_takes_what_is_mounted_below(mount_namespace, tmp_path):
    """And a plain one does not."""
    for name in ("source/below", "all", "one"):
        (tmp_path / name).mkdir(parents=True)
    mount_namespace.tmpfs(tmp_path / "source/below")
    mount_namespace.bind(tmp_path / "source", tmp_path / "all")
    mount_namespace.bind(tmp_path / "source", tmp_path / "one", recursive=False)
    found = mountinfo(mount_namespace)
    assert str(tmp_path / "all/below") in found
    assert str(tmp_path / "one") in found
    assert str(tmp_path / "one/below") not in found


def test_umount(mount_namespace, tmp_path):
    """Gone; busy while somebody is in it, and lazily gone all the same."""
    mount_namespace.tmpfs(tmp_path)
    mount_namespace.umount(tmp_path)
    assert str(tmp_path) not in mountinfo(mount_namespace)
    mount_namespace.tmpfs(tmp_path)
    with mount_namespace.popen(["sleep", 1000], cwd=tmp_path):
        with pytest.raises(KernelError, match=r"umount2.*EBUSY.*Something in it is open"):
            mount_namespace.umount(tmp_path)
        mount_namespace.umount(tmp_path, lazy=True)
        assert str(tmp_path) not in mountinfo(mount_namespace)
    with pytest.raises(KernelError, match=r"umount2.*EINVAL.*not a mount point"):
        mount_namespace.umount(tmp_path)


# -- propagation: between a namespace and a copy of it


@pytest.fixture
def shared(isolation, tmp_path):
    """A mount namespace with a shared tmpfs at tmp_path, and a directory in it to mount on."""
    space = isolation.mount_namespace()
    space.tmpfs(tmp_path)
    space.set_propagation(tmp_path, "shared")
    space.run(["mkdir", tmp_path / "before", tmp_path / "after"])
    return space


@pytest.mark.parametrize(
    "propagation, comes_in, goes_out",
    [("private", False, False), ("slave", True, False), ("shared", True, True), ("unbindable", False, False)],
)
def test_propagation(isolation, shared, tmp_path, propagation, comes_in, goes_out):
    """What is mounted in the original afterwards comes into the copy, or not; and the other way round."""
    copy = isolation.mount_namespace(copy_of=shared, propagation=propagation)
    line = mountinfo(copy)[str(tmp_path)]
    original = group(mountinfo(shared)[str(tmp_path)], "shared")
    assert original
    if propagation == "slave":
        assert group(line, "master") == original
        assert group(line, "shared") is None
    elif propagation == "shared":
        assert group(line, "shared") == original
    else:
        assert (group(line, "shared"), group(line, "master")) == (None, None)
    assert ("unbindable" in line.split()) is (propagation == "unbindable")
    assert copy.find(tmp_path).propagation == propagation

    shared.tmpfs(tmp_path / "before")
    assert (str(tmp_path / "before") in mountinfo(copy)) is comes_in
    copy.tmpfs(tmp_path / "after")
    assert (str(tmp_path / "after") in mountinfo(shared)) is goes_out
    assert str(tmp_path) not in mountinfo()


def test_an_unbindable_mount_is_no_source(mount_namespace, tmp_path):
    """EINVAL, with what may be the cause."""
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    mount_namespace.tmpfs(tmp_path / "source")
    mount_namespace.set_propagation(tmp_path / "source", "unbindable")
    with pytest.raises(KernelError, match=r"mount\(.*MS_BIND.*EINVAL.*unbindable"):
        mount_namespace.bind(tmp_path / "source", tmp_path / "target")


def test_nothing_goes_out_to_the_machine(isolation, tmp_path):
    """Whatever the propagation asked for."""
    before = mountinfo()
    for propagation in ("private", "slave", "shared", "unbindable"):
        isolation.mount_namespace(propagation=propagation).tmpfs(tmp_path)
    assert mountinfo() == before


def test_a_copy_of_another(isolation, tmp_path):
    """Starts with what is mounted there."""
    first = isolation.mount_namespace()
    first.tmpfs(tmp_path)
    copy = isolation.mount_namespace(copy_of=first)
    assert str(tmp_path) in mountinfo(copy)
    first.umount(tmp_path)
    assert str(tmp_path) in mountinfo(copy)


# -- the kernel's own words


def test_a_misspelt_option_is_named(mount_namespace, tmp_path):
    """By the kernel: mount(8) would say "wrong fs type, bad option, bad superblock"."""
    with pytest.raises(KernelError, match=r"EINVAL.*the kernel says: .*Unknown parameter 'sise'"):
        mount_namespace.mount("tmpfs", tmp_path, "tmpfs", data="sise=1m")
    with pytest.raises(KernelError, match=r"the kernel says: .*size"):
        mount_namespace.mount("tmpfs", tmp_path, "tmpfs", data="size=nonsense")
    assert str(tmp_path) not in mountinfo(mount_namespace)


@pytest.mark.parametrize(
    "use, error, fragment",
    [
        (lambda ns, path: ns.mount("none", path, "no-such-fs"), KernelError, "ENODEV.*no such file system type"),
        (lambda ns, path: ns.tmpfs(path / "missing"), KernelError, "ENOENT"),
        (lambda ns, path: ns.bind(path / "missing", path), KernelError, "ENOENT"),
        (
            lambda ns, path: ns.set_propagation(path, "privat"),
            ValueError,
            "propagation='privat': allowed are private, slave",
        ),
        (lambda ns, path: ns.set_propagation(path, "private"), KernelError, "EINVAL"),
        (lambda ns, _: ns.tmpfs("/tmp/a\0b"), ValueError, "(?i)nul"),
    ],
)
def test_a_mount_that_cannot_be(mount_namespace, tmp_path, nothing_left, use, error, fragment):
    """Refused, and the list of mounts is unchanged."""
    before = mountinfo(mount_namespace)
    with nothing_left(), pytest.raises(error, match=fragment):
        use(mount_namespace, tmp_path)
    assert mountinfo(mount_namespace) == before


@pytest.mark.parametrize(
    "options, error, fragment",
    [
        ({"propagation": "privat"}, ValueError, "propagation='privat': allowed are private, slave, shared, unbindable"),
        ({"propagation": None}, ValueError, "propagation=None"),
        ({"copy_of": "pytest"}, TypeError, "copy_of"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
def test_a_mount_namespace_that_cannot_be(isolation, nothing_left, options, error, fragment):
    """Refused by name."""
    with nothing_left(), pytest.raises(error, match=fragment):
        isolation.mount_namespace(**options)


def test_a_copy_of_a_closed_one(isolation, nothing_left):
    """Refused."""
    space = isolation.mount_namespace()
    space.close()
    with nothing_left(), pytest.raises(ClosedError):
        isolation.mount_namespace(copy_of=space)


def test_copy_of_and_user(isolation, nothing_left):
    """Do not go together."""
    space, user = isolation.mount_namespace(), isolation.user_namespace()
    with nothing_left(), pytest.raises(ValueError, match="do not go together"):
        isolation.mount_namespace(copy_of=space, user=user)


def test_one_that_a_user_namespace_owns(isolation, tmp_path):
    """Its root may mount a tmpfs in it."""
    user = isolation.user_namespace()
    space = isolation.mount_namespace(user=user)
    space.tmpfs(tmp_path)
    assert " - tmpfs " in mountinfo(space)[str(tmp_path)]
    assert str(tmp_path) in {mount.target for mount in space.mounts()}
    assert str(tmp_path) not in mountinfo()
    with pytest.raises(KernelError, match=r"EPERM"):
        space.mount("/dev/vda", tmp_path, "ext4")


def test_nsenter_leads_in(mount_namespace, tmp_path):
    """By path and by enter_command."""
    mount_namespace.tmpfs(tmp_path)
    shown = subprocess.check_output([*mount_namespace.enter_command.split(), "cat", "/proc/self/mountinfo"], text=True)
    assert str(tmp_path) in shown


def test_with_inside_mounts_end_with_the_namespace(isolation, tmp_path):
    """A test that mounts by itself, inside."""
    space = isolation.mount_namespace()
    with inside(space):
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
        (tmp_path / "file").touch()
    assert os.listdir(tmp_path) == []
    assert space.call(os.listdir, tmp_path) == ["file"]

"""Chapter 3: mount, a tree of mounts of one's own.

A mount namespace is a copy of the list of mounts: what is mounted in the copy is mounted there only. It is what gives
a container its own file systems, and what makes pivot_root (chapter 1) and a /proc of one's own (chapter 2) possible.

How separate a copy is can be chosen for every mount: its propagation. `private` mounts hear nothing of each other,
`shared` ones show every new mount to all copies, a `slave` listens and does not speak, and an `unbindable` mount is
private and may not be bound to a second place either.
"""

import errno
import os

import pytest

from pytest_isolation import KernelError


def df(namespace):
    """What `df` lists in a mount namespace: the mount points. (It complains where not even root may look.)"""
    return namespace.run(["df", "--output=target"], check=False).stdout.splitlines()[1:]


def test_a_tmpfs_here_is_not_there(isolation, tmp_path):
    """A tmpfs mounted in one namespace is in its df, and in no other's."""
    here, there = isolation.mount_namespace(), isolation.mount_namespace()
    here.tmpfs(tmp_path, size="1m")
    assert str(tmp_path) in df(here)
    assert str(tmp_path) not in df(there)
    assert not os.path.ismount(tmp_path)  # and not in pytest's own


def test_files_in_it_are_seen_inside_only(mount_namespace, tmp_path):
    """The same path leads to another file system: what is written inside never reaches the directory below."""
    (tmp_path / "below").touch()
    mount_namespace.tmpfs(tmp_path)
    mount_namespace.run(["touch", tmp_path / "above"])
    assert mount_namespace.run(["ls", tmp_path]).stdout == "above\n"
    assert os.listdir(tmp_path) == ["below"]


def test_the_ids_differ(isolation):
    """Every namespace has an id; processes with the same one live in the same."""
    one, other = isolation.mount_namespace(), isolation.mount_namespace()
    command = ["readlink", "/proc/self/ns/mnt"]
    ids = {one.run(command).stdout, other.run(command).stdout, f"{os.readlink('/proc/self/ns/mnt')}\n"}
    assert len(ids) == 3
    assert one.run(command).stdout == f"mnt:[{one.ns_id[1]}]\n"


@pytest.fixture
def original(mount_namespace, tmp_path):
    """A mount namespace with a shared tmpfs, and in it two directories to mount on."""
    mount_namespace.tmpfs(tmp_path)
    mount_namespace.set_propagation(tmp_path, "shared")
    mount_namespace.run(["mkdir", tmp_path / "1", tmp_path / "2"])
    return mount_namespace


def mounted(namespace, folder):
    """Which of the two directories is something mounted on, in that namespace?"""
    return [name for name in ("1", "2") if str(folder / name) in df(namespace)]


def test_private(isolation, original, tmp_path):
    """private: what is mounted in one is not in the other, in neither direction."""
    copy = isolation.mount_namespace(copy_of=original, propagation="private")
    original.tmpfs(tmp_path / "1")
    copy.tmpfs(tmp_path / "2")
    assert mounted(original, tmp_path) == ["1"]
    assert mounted(copy, tmp_path) == ["2"]
    assert copy.find(tmp_path).propagation == "private"


def test_shared(isolation, original, tmp_path):
    """shared: both are peers; what one mounts, or unmounts, the other does too."""
    copy = isolation.mount_namespace(copy_of=original, propagation="shared")
    original.tmpfs(tmp_path / "1")
    copy.tmpfs(tmp_path / "2")
    assert mounted(original, tmp_path) == mounted(copy, tmp_path) == ["1", "2"]
    copy.umount(tmp_path / "1")
    assert mounted(original, tmp_path) == mounted(copy, tmp_path) == ["2"]
    assert copy.find(tmp_path).shared == original.find(tmp_path).shared  # one peer group


def test_slave(isolation, original, tmp_path):
    """slave: the copy follows what happens in the original, which hears nothing of the copy."""
    copy = isolation.mount_namespace(copy_of=original, propagation="slave")
    original.tmpfs(tmp_path / "1")
    copy.tmpfs(tmp_path / "2")
    assert mounted(original, tmp_path) == ["1"]
    assert mounted(copy, tmp_path) == ["1", "2"]
    assert copy.find(tmp_path).master == original.find(tmp_path).shared  # whom it listens to


def test_unbindable(isolation, original, tmp_path):
    """unbindable: private, and besides the kernel refuses to show it at a second place."""
    copy = isolation.mount_namespace(copy_of=original, propagation="unbindable")
    original.tmpfs(tmp_path / "1")
    assert mounted(copy, tmp_path) == []
    original.bind(tmp_path, "/mnt")
    assert original.find("/mnt").device == original.find(tmp_path).device
    with pytest.raises(KernelError) as refused:
        copy.bind(tmp_path, "/mnt")
    assert refused.value.errno == errno.EINVAL
    assert copy.find(tmp_path).unbindable

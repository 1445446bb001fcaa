"""tmpfs and loop devices, by the word of statvfs, mountinfo and /sys/block."""

import errno
import os
from pathlib import Path

import pytest

from pytest_isolation import ChildError, KernelError, LeakError, LoopDevice, Tmpfs, Unsupported, eventually
from pytest_isolation._kernel import procfs, syscalls
from pytest_isolation._state import mounts
from pytest_isolation.objects import loop as loop_module


def backing_files():
    """What is attached where, of all loop devices of the machine, ours only."""
    ours = str(mounts.directory())
    found = {}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.startswith(ours):
            found[path.parts[3]] = text
    return found


def things():
    here = {(mount.mount_id, mount.target) for mount in procfs.mounts("thread-self")}
    return here, sorted(os.listdir(mounts.directory())), backing_files()


@pytest.fixture
def before():
    """What there was."""
    return things()


def test_a_tmpfs_has_its_limits(isolation):
    """Size, inodes and mode, and what is taken of them."""
    made = isolation.tmpfs(size="1m", inodes=4, mode=0o700)
    (mount,) = [mount for mount in procfs.mounts("thread-self") if mount.target == str(made.path)]
    assert mount.fstype == "tmpfs"
    assert {"size=1024k", "nr_inodes=4", "mode=700"} <= set(mount.super_options)
    assert {"nosuid", "nodev"} <= set(mount.options)
    (made.path / "file").write_bytes(b"x" * 4096)
    assert made.usage() == (1 << 20, 4096, (1 << 20) - 4096, 4, 2, 2)
    with pytest.raises(OSError, match="No space") as full:
        (made.path / "big").write_bytes(b"x" * (2 << 20))
    assert full.value.errno == errno.ENOSPC
    (made.path / "third").touch()
    with pytest.raises(OSError, match="No space"):
        (made.path / "fifth").touch()


@pytest.mark.parametrize(
    "kind, options, fragment",
    [
        ("tmpfs", {"size": "1x"}, "size='1x': allowed are numbers"),
        ("tmpfs", {"size": 0}, "size=0"),
        ("tmpfs", {"size": -1}, "size=-1"),
        ("tmpfs", {"size": True}, "size=True"),
        ("tmpfs", {"size": None}, "size=None"),
        ("tmpfs", {"inodes": "many"}, "inodes='many'"),
        ("tmpfs", {"inodes": 1 << 80}, "below 2\\*\\*63"),
        ("tmpfs", {"mode": 0o10000}, "mode=4096: allowed are permission bits"),
        ("tmpfs", {"mode": "755"}, "mode='755'"),
        ("loop_device", {"size": "1m", "fstype": "vfat"}, "fstype='vfat': allowed are ext4, xfs, and None"),
        ("loop_device", {"size": 1000}, "size=1000: allowed are multiples of 512"),
        ("loop_device", {"size": "1000000t"}, r"size=\d+: allowed are the \d+ bytes that are free"),
    ],
)
def test_arguments_that_cannot_be(isolation, before, kind, options, fragment):
    """Named; nothing was created."""
    with pytest.raises(ValueError, match=fragment):
        getattr(isolation, kind)(**options)
    assert things() == before


def test_a_busy_tmpfs_is_a_finding(before):
    """Who it is is said, and it goes."""
    made = Tmpfs()
    file = os.open(made.path / "file", os.O_CREAT)
    with pytest.raises(ExceptionGroup) as finding:
        made.close()
    os.close(file)
    (error,) = finding.value.exceptions
    assert error.errno == errno.EBUSY
    assert f"fd {file} is {made.path}/file" in str(error)
    assert things() == before


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_disk_of_one_s_own(isolation, before, fstype):
    """A file system on a loop device on a file, each by the kernel's own word; freed when it is closed."""
    with LoopDevice(fstype=fstype) as disk:
        (mount,) = [mount for mount in procfs.mounts("thread-self") if mount.target == str(disk.path)]
        assert (mount.fstype, mount.source, disk.fstype) == (fstype, str(disk.device), fstype)
        assert backing_files() == {disk.device.name: str(disk.image)}
        sectors = int(Path(f"/sys/block/{disk.device.name}/size").read_text())
        assert sectors * 512 == disk.image.stat().st_size
        (disk.path / "file").write_text("on a disk")
        assert isolation.netns().run(["cat", disk.path / "file"]).stdout == "on a disk"
        assert 0 < disk.usage().size_bytes < sectors * 512
    assert things() == before


def test_a_bare_device(before):
    """With fstype=None nothing is mounted: what is written to the device is in the image."""
    with LoopDevice(size="64k", fstype=None) as disk:
        with open(disk.device, "r+b", buffering=0) as device:
            device.write(b"x" * 512)
            os.fsync(device)
        assert disk.image.read_bytes().rstrip(b"\0") == b"x" * 512
        with pytest.raises(ValueError, match="fstype=None"):
            disk.path  # noqa: B018 - what is refused
    assert things() == before


def test_a_device_that_is_still_used(monkeypatch, before):
    """A finding that says who; the kernel frees it when they let go."""
    monkeypatch.setattr(loop_module, "_FREED_WITHIN_S", 0.05)
    disk = LoopDevice(fstype=None)
    fd = os.open(disk.device, os.O_RDONLY)
    with pytest.raises(ExceptionGroup) as finding:
        disk.close()
    (error,) = finding.value.exceptions
    assert isinstance(error, LeakError)
    assert f"process {os.getpid()}" in str(error)
    assert f"fd {fd} is {disk.device}" in str(error)
    os.close(fd)
    eventually(lambda: backing_files() == {})
    assert things() == before


@pytest.mark.parametrize("fstype, size", [("ext4", "4k"), ("xfs", "1m")])
def test_an_image_too_small_for_the_file_system(before, fstype, size):
    """In mkfs's own words, with the size."""
    with pytest.raises(ChildError, match=r"The image has \d+ bytes(?s:.*)(too small|Not enough space)"):
        LoopDevice(size=size, fstype=fstype)
    assert things() == before


def test_no_loop_device_left(monkeypatch, before):
    """What the kernel says, and what it means."""

    def none_left(_):
        syscalls.fail(errno.ENOSPC, "ioctl(/dev/loop-control, LOOP_CTL_GET_FREE)")

    monkeypatch.setattr(syscalls, "loop_ctl_get_free", none_left)
    with pytest.raises(KernelError, match=r"LOOP_CTL_GET_FREE\) = -1 ENOSPC.*No loop device is left"):
        LoopDevice()
    assert things() == before


def test_another_process_is_quicker(monkeypatch, before):
    """The free device is taken between the two calls: then the next one; and not for ever."""
    configure, tries = syscalls.loop_configure, []

    def taken(device, image, flags, *, until=2):
        tries.append(device)
        if len(tries) <= until:
            raise KernelError(errno.EBUSY, "ioctl(LOOP_CONFIGURE)")
        configure(device, image, flags)

    monkeypatch.setattr(syscalls, "loop_configure", taken)
    LoopDevice(fstype=None).close()
    assert len(tries) == 3
    monkeypatch.setattr(syscalls, "loop_configure", lambda *args: taken(*args, until=1000))
    with pytest.raises(KernelError, match="100 times another process was quicker"):
        LoopDevice(fstype=None)
    assert things() == before


@pytest.mark.parametrize(
    "patch, fragment",
    [
        ({"_CONTROL": "/dev/no-such-control"}, "no-such-control.*Remedy.*BLK_DEV_LOOP"),
        ({"_MAKERS": {"ext4": (["mkfs.no-such"], "e2fsprogs", "16m")}}, "there is no mkfs.no-such.*install e2fsprogs"),
    ],
)
def test_what_this_machine_lacks(monkeypatch, before, patch, fragment):
    for name, value in patch.items():
        monkeypatch.setattr(loop_module, name, value)
    with pytest.raises(Unsupported, match=fragment):
        LoopDevice()
    assert things() == before


def test_a_dev_without_its_node(monkeypatch, before):
    """As in a container: the node is made on the run's tmpfs, not on the machine's /dev."""
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith("/dev/loop") and exists(path))
    with LoopDevice() as disk:
        assert disk.device.parent == disk.image.parent
        (disk.path / "file").touch()
    assert things() == before

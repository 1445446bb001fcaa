"""Chapter 10: overlay, directories laid over each other.

A container's files are not its own. An image is a pile of layers that nobody changes, and a hundred containers may
read the same pile; each has one empty layer of its own on top, where all that it changes lands. The kernel shows the
pile as one directory: overlayfs.

Here are three images, a container and the two directories that overlayfs wants besides:

    image1     a b     lower layer, never written
    image2     c       lower layer, never written
    image3             lower layer, empty
    container          upper layer: every change lands here
    work               the kernel's own workshop
    merge              where all of it is seen: a b c

which in a shell is `mount -t overlay overlay -o lowerdir=image1:image2:image3,upperdir=container,workdir=work merge`.
"""

import errno
import os
import subprocess

import pytest

from pytest_isolation import Change, KernelError, is_opaque, is_whiteout, tree


@pytest.fixture
def stack(isolation, tmp_path):
    """The three images, merged; the names are those of the story."""
    images = {"image1": {"a": "one\n", "b": "one\n"}, "image2": {"c": "two\n"}, "image3": {}}
    home = isolation.tmpfs().path
    for name in (*images, "container", "work", "merge"):
        (home / name).mkdir()
        for file, text in images.get(name, {}).items():
            (home / name / file).write_text(text)
    return isolation.overlay_fs(
        home / "image1",
        home / "image2",
        home / "image3",
        upper=home / "container",
        work=home / "work",
        merged=home / "merge",
    )


def test_merge_shows_all_layers(stack):
    """Merge shows a and b of image1 and c of image2; nothing was copied, the container layer is empty."""
    assert sorted(os.listdir(stack.merged)) == ["a", "b", "c"]
    assert (stack.merged / "c").read_text() == "two\n"
    assert os.listdir(stack.upper) == []


def test_commands_see_it_and_the_machine_does_not(stack, isolation):
    """It is mounted in a mount namespace of the test run: `ls` sees it, and the machine's list of mounts does not."""
    listed = subprocess.run(["ls", stack.merged], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["a", "b", "c"]
    assert isolation.pid_namespace().run(["ls", stack.merged]).stdout.split() == ["a", "b", "c"]


def test_what_is_new_lands_in_the_container_layer_only(stack):
    """A new directory with a file in it is in merge and in container, and in no image."""
    before = [tree(image) for image in stack.lower]
    (stack.merged / "jhyunlee").mkdir()
    (stack.merged / "jhyunlee/okman").touch()
    assert tree(stack.upper) == {"jhyunlee": {"okman": ""}}
    assert [tree(image) for image in stack.lower] == before
    assert stack.changes() == [Change("jhyunlee", "added"), Change("jhyunlee/okman", "added")]


def test_deleting_leaves_a_whiteout(stack):
    """The image is never written, so a is not deleted there: a mark in the container layer hides it, a whiteout.

    It is a character device with the numbers 0 and 0, as `ls -l` shows.
    """
    (stack.merged / "a").unlink()
    assert sorted(os.listdir(stack.merged)) == ["b", "c"]
    assert (stack.lower[0] / "a").read_text() == "one\n"
    assert is_whiteout(stack.upper / "a")
    line = subprocess.check_output(["ls", "-l", stack.upper / "a"], text=True).split()
    assert (line[0][0], line[4:6]) == ("c", ["0,", "0"])
    assert stack.changes() == [Change("a", "deleted")]


def test_changing_copies_up(stack):
    """The first write to b copies it into the container layer, whole, and goes on there: the image stays as it is."""
    with open(stack.merged / "b", "a") as file:
        file.write("more\n")
    assert (stack.merged / "b").read_text() == (stack.upper / "b").read_text() == "one\nmore\n"
    assert (stack.lower[0] / "b").read_text() == "one\n"
    assert stack.changes() == [Change("b", "modified")]


def test_changing_the_mode_copies_up_as_well(stack):
    """Mode and owner belong to the file: chmod copies it too, though its content is as it was."""
    (stack.merged / "c").chmod(0o600)
    assert (stack.upper / "c").read_text() == "two\n"
    assert stack.changes() == [Change("c", "metadata")]


def test_which_layer_wins(isolation):
    """The leftmost lowerdir is the uppermost: what it has hides what those to its right have under the same name."""
    overlay = isolation.overlay_fs({"same": "left"}, {"same": "middle"}, {"same": "right", "only": "right"})
    assert tree(overlay.merged) == {"same": "left", "only": "right"}
    (overlay.merged / "same").write_text("upper")  # and the upper layer is above them all
    assert (overlay.merged / "same").read_text() == "upper"
    assert [(layer / "same").read_text() for layer in overlay.lower] == ["left", "middle", "right"]


def test_directories_are_merged_files_are_not(isolation):
    """A directory that several layers have shows the names of all of them."""
    overlay = isolation.overlay_fs({"etc": {"hosts": "upper"}}, {"etc": {"hosts": "lower", "passwd": "lower"}})
    assert tree(overlay.merged) == {"etc": {"hosts": "upper", "passwd": "lower"}}


def test_an_opaque_directory(isolation):
    """A directory deleted and made again is empty, so it must not be merged with the old one: it is opaque.

    That is said by an extended attribute of the directory in the upper layer, `trusted.overlay.opaque`.
    """
    overlay = isolation.overlay_fs({"dir": {"x": "", "sub": {"y": ""}}})
    subprocess.run(["rm", "-r", overlay.merged / "dir"], check=True)
    assert is_whiteout(overlay.upper / "dir")
    (overlay.merged / "dir").mkdir()
    (overlay.merged / "dir/new").touch()
    assert os.listdir(overlay.merged / "dir") == ["new"]
    assert is_opaque(overlay.upper / "dir")
    assert os.getxattr(overlay.upper / "dir", "trusted.overlay.opaque") == b"y"
    assert overlay.changes() == [Change("dir", "opaque"), Change("dir/new", "added")]


def test_a_misspelt_option(isolation):
    """mount(8) says "wrong fs type, bad option, bad superblock"; the kernel itself says which option it was."""
    with pytest.raises(KernelError) as refused:
        isolation.overlay_fs(options={"workerdir": "work"})
    assert refused.value.errno == errno.EINVAL
    assert refused.value.message == "overlay: Unknown parameter 'workerdir'"


def test_overlayfs_is_no_disk_format(stack):
    """`mkfs overlayfs` cannot be: mkfs writes the structures of a file system onto a disk, and an overlay has no disk.

    The kernel lists it as `nodev`: it lies over other file systems, which keep the files, and has nothing to format.
    """
    with open("/proc/filesystems") as file:
        assert "nodev\toverlay\n" in file
    made = subprocess.run(["mkfs", "-t", "overlayfs", "/nowhere"], capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert "mkfs.overlayfs" in made.stderr  # the program that mkfs looks for, and nobody ever wrote


def test_what_df_says(stack):
    """Df shows `overlay` as the file system, with the size and the free space of the one that holds the upper layer."""

    def df(path):
        command = ["df", "--output=source,size,avail,target", path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1].split()

    source, *space, target = df(stack.merged)
    assert (source, target) == ("overlay", str(stack.merged))
    assert space == df(stack.upper)[1:3]


def test_what_lies_in_work(stack):
    """In work there is one directory, again `work`, which nobody may enter, and which is empty between two changes.

    A file that is copied up grows there first, and is moved to its place when it is whole: so nobody ever sees half a
    file in the upper layer, not even after a crash. That is why both have to be on one file system.
    """
    with open(stack.merged / "b", "a") as file:
        file.write("more\n")
    (stack.merged / "a").unlink()
    work = stack.work / "work"
    assert os.listdir(stack.work) == ["work"]
    assert work.stat().st_mode & 0o777 == 0
    assert all(is_whiteout(work / name) for name in os.listdir(work))  # kept at hand, for the next deletion
    assert stack.work.stat().st_dev == stack.upper.stat().st_dev

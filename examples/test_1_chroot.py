"""Chapter 1: chroot, another directory as /.

The oldest piece of a container, from 1979. Every process has a root: the directory where its absolute paths begin.
chroot(2) makes it another one, and nothing else: whoever is in there sees the new / and the old everything else, the
same process numbers, the same network, the same users.

Two things are worth learning by doing. An empty root is really empty: a program is not one file, it also needs the
loader that starts it and the libraries that it names. And chroot is no prison: root walks out of it in four calls.
What holds is pivot_root(2), which takes the old root away instead of looking past it.
"""

import os
import signal
import subprocess

import pytest

from pytest_isolation import ChildError


def test_a_program_alone_does_not_start(chroot_root):
    """Only bash is in the root, not the loader that it names: where the kernel says "No such file", we say which."""
    chroot_root.add("/bin/bash", libraries=False)
    with pytest.raises(FileNotFoundError, match=r"/bin/bash is in the root, but not the loader .*/ld[^/]*\.so"):
        chroot_root.run(["/bin/bash", "-c", "pwd"])


def test_bash_with_its_libraries_starts(chroot_root):
    """`add` brings the program, its loader and its libraries; now bash runs, and where it is, is /."""
    chroot_root.add("/bin/bash")
    assert chroot_root.run(["/bin/bash", "-c", "pwd"]).stdout == "/\n"


def test_what_was_not_added_is_not_there(chroot_root):
    """A root with only bash has no ls; the host has one, but / is here now."""
    chroot_root.add("/bin/bash")
    with pytest.raises(FileNotFoundError, match="there is no /bin/ls in the root"):
        chroot_root.run(["/bin/ls", "/"])
    with pytest.raises(ChildError, match="ls: command not found"):
        chroot_root.run(["/bin/bash", "-c", "ls /"])


def test_ls_without_its_libraries_names_the_missing_one(chroot_root):
    """With bash came the loader, so ls does start; then the loader misses a library that ls needs, and names it."""
    chroot_root.add("/bin/bash")
    chroot_root.add("/bin/ls", libraries=False)
    with pytest.raises(ChildError, match=r"error while loading shared libraries: lib\w+\.so"):
        chroot_root.run(["/bin/ls", "/"])


def test_ls_added_shows_the_new_root(chroot_root):
    """With ls and its libraries, `ls /` lists what we put into the directory, and nothing of the host."""
    chroot_root.add("/bin/bash", "/bin/ls")
    chroot_root.mkdir("/only-here")
    listed = chroot_root.run(["/bin/bash", "-c", "ls -a /"]).stdout.split()
    assert listed == [".", "..", *sorted(os.listdir(chroot_root.path))]
    assert "only-here" in listed
    assert "proc" not in listed


def test_from_outside_only_the_root_is_another(chroot_root):
    """The same process seen from outside: an ordinary pid, every namespace ours, and a root link that differs."""
    chroot_root.add("/bin/bash")
    bash = ["/bin/bash", "-c", "echo my pid is $$; read line"]
    with chroot_root.popen(bash, stdin=subprocess.PIPE, ready="line:my pid is") as process:
        assert process.log == f"my pid is {process.pid}\n"  # inside and outside it has one and the same number
        assert os.readlink(f"/proc/{process.pid}/root") == str(chroot_root.path)
        assert os.readlink("/proc/self/root") == "/"
        for kind in os.listdir("/proc/self/ns"):
            assert os.readlink(f"/proc/{process.pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}"), kind


@pytest.fixture
def outside():
    """An ordinary process of the machine."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_pids_are_shared(chroot_root, outside):
    """From inside the root, a process outside can be signalled: there is one world of pids."""
    chroot_root.add("/bin/bash")
    chroot_root.run(["/bin/bash", "-c", f"kill {outside.pid}"])
    assert outside.wait(timeout=10) == -signal.SIGTERM


def escape() -> tuple[int, int]:
    """The classic way out, as root: chroot away from the working directory, walk up, chroot to the top."""
    os.mkdir("further-down")
    os.chroot("further-down")  # the working directory is now outside the root, so ".." is not stopped at it
    for _ in range(100):
        os.chdir("..")
    os.chroot(".")
    top = os.stat("/")
    return top.st_dev, top.st_ino


def test_chroot_is_no_prison(chroot_root):
    """After a chroot(2), root walks out: in the end its / is the host's /."""
    host = os.stat("/")
    assert chroot_root.call_in_child(escape) == (host.st_dev, host.st_ino)


@pytest.mark.parametrize("chroot_root", [{"pivot": True}], indirect=True)
def test_after_pivot_root_there_is_nowhere_to_go(chroot_root):
    """pivot_root(2) swaps the root of a mount namespace and drops the old one: the way up ends in the new root."""
    new_root = os.stat(chroot_root.path)
    assert chroot_root.call_in_child(escape) == (new_root.st_dev, new_root.st_ino)

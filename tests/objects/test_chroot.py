"""Roots: filled with just what is wanted, entered by chroot(2) or pivot_root(2), and nothing ever written outside."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pytest_isolation import ChildError, ChrootRoot, ClosedError, KernelError, inside

# What is tried here on paths of a root would be a disaster on the machine's own.
pytestmark = pytest.mark.usefixtures("read_only_system")


def tree(path):
    """Every path below a directory, with its type, its link target and its content."""
    found = {}
    for folder, folders, files in os.walk(path):
        for name in [*folders, *files]:
            full = Path(folder, name)
            status = full.lstat()
            content = (
                os.readlink(full) if full.is_symlink() else full.read_bytes() if stat.S_ISREG(status.st_mode) else None
            )
            found[str(full.relative_to(path))] = (status.st_mode, status.st_mtime_ns, content)
    return found


@pytest.fixture
def outside(tmp_path):
    """A directory of the host's that nobody may write to by way of a root, checked at the end."""
    path = tmp_path / "outside"
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text("of the host")
    before = tree(path)
    yield path
    assert tree(path) == before


@pytest.fixture
def root_at(isolation, tmp_path):
    """A root at a given directory, made hostile by the test before."""

    def make(name="root"):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        return isolation.chroot_root(path=path)

    return make


# -- what is in it


def test_it_is_empty(chroot_root):
    """Until something is added."""
    assert os.listdir(chroot_root.path) == []


def test_a_program_with_just_what_it_loads(chroot_root):
    """A shell runs in it; every file in it is bash, its loader, its libraries, or the way to them."""
    chroot_root.add("/bin/bash")
    assert chroot_root.run(["/bin/bash", "-c", "pwd; echo $BASH_VERSION"]).stdout.startswith("/\n")
    wanted = {str(Path("/bin/bash").resolve())}
    for line in subprocess.check_output(["ldd", "/bin/bash"], text=True).splitlines():
        wanted |= {str(Path(word).resolve()) for word in line.split() if word.startswith("/")}
    files = {f"/{name}" for name, (mode, _, _) in tree(chroot_root.path).items() if stat.S_ISREG(mode)}
    assert files - {"/etc/ld.so.cache"} == wanted
    for file in files:
        assert Path(f"{chroot_root.path}{file}").read_bytes() == Path(file).read_bytes()
        assert os.stat(f"{chroot_root.path}{file}").st_mode == os.stat(file).st_mode


def test_a_name_is_found_in_path(chroot_root):
    """Several at once, too."""
    chroot_root.add("sh", "ls", "cat")
    assert (
        "bin" in chroot_root.run([shutil.which("ls"), "/"]).stdout
        or "usr" in chroot_root.run([shutil.which("ls"), "/"]).stdout
    )


def test_links_stay_links(chroot_root, tmp_path):
    """A chain of symbolic links leads to the file, as on the host."""
    (tmp_path / "real").mkdir()
    shutil.copy("/bin/true", tmp_path / "real/program")
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "one-more").symlink_to(tmp_path / "one/program")
    chroot_root.add(tmp_path / "one-more")
    inside_it = Path(f"{chroot_root.path}{tmp_path}")
    assert os.readlink(inside_it / "one-more") == str(tmp_path / "one/program")
    assert os.readlink(inside_it / "one") == "real"
    assert (inside_it / "real/program").is_file()
    chroot_root.run([tmp_path / "one-more"])


def test_a_script_with_its_interpreter(chroot_root, tmp_path):
    """And the interpreter's libraries."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho from a script in $PWD\n")
    script.chmod(0o755)
    chroot_root.add(script)
    assert chroot_root.run([script]).stdout == "from a script in /\n"


def test_a_script_that_finds_its_interpreter_by_env(chroot_root, tmp_path):
    """Both env and what it will find come."""
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env sh\necho found\n")
    script.chmod(0o755)
    chroot_root.add(script)
    assert chroot_root.run([script]).stdout == "found\n"


def test_a_static_program_needs_nothing(chroot_root, tmp_path):
    """No loader, no libraries."""
    source = tmp_path / "static.c"
    source.write_text("int main(void) { return 42; }")
    if subprocess.run(
        ["gcc", "-static", "-o", tmp_path / "static", source], check=False, capture_output=True
    ).returncode:
        pytest.skip("no C compiler with a static C library")
    chroot_root.add(tmp_path / "static")
    assert chroot_root.run([tmp_path / "static"], check=False).returncode == 42
    assert [name for name, (mode, _, _) in tree(chroot_root.path).items() if stat.S_ISREG(mode)] == [
        str(tmp_path / "static").lstrip("/")
    ]


def test_adding_twice(chroot_root):
    """Is the same as once."""
    chroot_root.add("/bin/sh")
    before = {name: entry[0] for name, entry in tree(chroot_root.path).items()}
    chroot_root.add("/bin/sh")
    assert {name: entry[0] for name, entry in tree(chroot_root.path).items()} == before


def test_add_tree_mkdir_mknod(chroot_root, tmp_path):
    """Directories with their modes, links as links, files with their content; devices and fifos."""
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below").chmod(0o750)
    (source / "file").write_text("content")
    (source / "file").chmod(0o640)
    (source / "link").symlink_to("/absolute/target")
    (source / "dirlink").symlink_to("below")
    chroot_root.add_tree(source, "/copy")
    copy = chroot_root.path / "copy"
    strip = lambda found: {name: (entry[0], entry[2]) for name, entry in found.items()}  # noqa: E731
    assert strip(tree(copy)) == strip(tree(source))
    chroot_root.add_tree(source)
    assert strip(tree(f"{chroot_root.path}{source}")) == strip(tree(source))

    chroot_root.mkdir("/a/b/c", 0o700)
    chroot_root.mkdir("/a/b/c", 0o700)
    assert stat.S_IMODE((chroot_root.path / "a/b/c").stat().st_mode) == 0o700
    chroot_root.mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    status = (chroot_root.path / "dev/null").stat()
    assert (stat.S_ISCHR(status.st_mode), stat.S_IMODE(status.st_mode), status.st_rdev) == (
        True,
        0o666,
        os.makedev(1, 3),
    )
    chroot_root.mknod("/fifo", stat.S_IFIFO | 0o600)
    assert stat.S_ISFIFO((chroot_root.path / "fifo").stat().st_mode)
    with pytest.raises(KernelError, match=r"mknod\('/fifo'.*EEXIST"):
        chroot_root.mknod("/fifo", stat.S_IFIFO | 0o600)


@pytest.mark.parametrize("pivot", [False, True])
def test_bind(isolation, tmp_path, pivot, nothing_left):
    """A directory or a file of the host's, for what runs in the root only; read-only where asked."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("of the host")
    root = isolation.chroot_root("/bin/sh", "/bin/cat", pivot=pivot)
    mounts = Path("/proc/self/mountinfo").read_text()
    root.bind(tmp_path / "shared", "/mnt/shared")
    root.bind(tmp_path / "shared/file", "/mnt/file", readonly=True)
    assert root.run(["/bin/cat", "/mnt/shared/file", "/mnt/file"]).stdout == "of the hostof the host"
    root.run(["/bin/sh", "-c", "echo from inside >/mnt/shared/new"])
    assert (tmp_path / "shared/new").read_text() == "from inside\n"
    with pytest.raises(ChildError, match=r"(?i)read-only"):
        root.run(["/bin/sh", "-c", "echo no >/mnt/file"])
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert os.listdir(root.path / "mnt/shared") == []
    root.close()
    assert (tmp_path / "shared/file").read_text() == "of the host"


# -- living in it


@pytest.mark.parametrize("pivot", [False, True])
def test_only_the_root_is_separated(isolation, read_only_system, pivot):
    """From outside it is a process like any other, whose root link points to the new root."""
    root = isolation.chroot_root("/bin/sh", pivot=pivot)
    with root.popen(["/bin/sh", "-c", "echo up; read never"], ready="line:up", stdin=subprocess.PIPE) as process:
        link = os.readlink(f"/proc/{process.pid}/root")
        assert link == ("/" if pivot else str(root.path))
        assert os.path.samestat(os.stat(f"/proc/{process.pid}/root"), os.stat(root.path))
        assert os.path.samestat(os.stat(f"/proc/{process.pid}/cwd"), os.stat(root.path))
        assert os.readlink(f"/proc/{process.pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
        assert (os.readlink(f"/proc/{process.pid}/ns/mnt") == read_only_system) is not pivot
    assert os.stat("/").st_ino == os.stat(f"/proc/{os.getpid()}/root").st_ino


def escape():
    """The classic way out: a second chroot, while the working directory stays above it."""
    if not os.path.exists("/below"):
        os.mkdir("/below")
    os.chroot("/below")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return os.stat("/").st_dev, os.stat("/").st_ino


def test_chroot_is_no_prison(chroot_root):
    """Root leaves it."""
    outer = os.stat("/")
    assert chroot_root.call_in_child(escape) == (outer.st_dev, outer.st_ino)


def test_pivot_root_leaves_nothing_to_escape_to(isolation):
    """The same way leads back into the root."""
    root = isolation.chroot_root(pivot=True)
    status = os.stat(root.path)
    assert root.call_in_child(escape) == (status.st_dev, status.st_ino)


def test_pivot_leaves_one_mount(isolation):
    """The root's own, and nothing of the host's."""
    root = isolation.chroot_root("/bin/cat", pivot=True)
    root.bind("/proc", "/proc")
    targets = [line.split()[4] for line in root.run(["/bin/cat", "/proc/self/mountinfo"]).stdout.splitlines()]
    assert targets.count("/") == 1
    assert all(target == "/" or target.startswith("/proc") for target in targets)


def test_call_in_child_and_run_start_in_the_root(chroot_root, tmp_path, monkeypatch):
    """Whatever pytest's working directory; cwd= is a path inside."""
    monkeypatch.chdir(tmp_path)
    chroot_root.add("/bin/sh")
    chroot_root.mkdir("/somewhere")
    assert chroot_root.run(["/bin/sh", "-c", "pwd"]).stdout == "/\n"
    assert chroot_root.run(["/bin/sh", "-c", "pwd"], cwd="/somewhere").stdout == "/somewhere\n"
    assert chroot_root.call_in_child(os.getcwd) == "/"
    assert os.getcwd() == str(tmp_path)


def test_a_root_within_a_mount_namespace(isolation, tmp_path):
    """What the mount namespace shows below the root is there."""
    root = isolation.chroot_root("/bin/cat")
    root.mkdir("/data")
    mounts = isolation.mount_namespace()
    mounts.tmpfs(root.path / "data")
    mounts.run(["sh", "-c", f"echo in the tmpfs >{root.path}/data/file"])
    assert inside(root, mounts).run(["/bin/cat", "/data/file"]).stdout == "in the tmpfs\n"
    assert not (root.path / "data/file").exists()


# -- what is missing is named


def test_a_program_that_is_not_in_the_root(chroot_root):
    """The error says how it comes there."""
    with pytest.raises(FileNotFoundError, match=r"there is no /bin/ls in the root .*add\('/bin/ls'\) brings it"):
        chroot_root.run(["/bin/ls"])
    with pytest.raises(FileNotFoundError, match="there is no nothing-like-that in the root"):
        chroot_root.run(["nothing-like-that"])
    with pytest.raises(FileNotFoundError, match="there is no /bin/sh in the root"):
        chroot_root.run("ls", shell=True)


def test_a_program_whose_loader_is_not_in_the_root(chroot_root):
    """ENOENT for a program that is there: the loader is what is missing, and it is named."""
    chroot_root.add("/bin/ls", libraries=False)
    with pytest.raises(FileNotFoundError, match=r"/bin/ls is in the root, but not the loader that it names, /lib.*ld"):
        chroot_root.run(["/bin/ls"])


def test_a_program_whose_libraries_are_not_in_the_root(chroot_root):
    """The loader names the first."""
    chroot_root.add("/bin/ls", libraries=False)
    chroot_root.add("/bin/true")
    libc = next(path for path in chroot_root.path.rglob("libc.so.6"))
    libc.unlink()
    with pytest.raises(ChildError, match=r"lib\S+\.so"):
        chroot_root.run(["/bin/ls"])


def test_a_script_whose_interpreter_is_not_in_the_root(chroot_root, tmp_path):
    """Named as well."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    chroot_root.add(script, libraries=False)
    with pytest.raises(FileNotFoundError, match="but not the interpreter that it names, /bin/sh"):
        chroot_root.run([script])


def broken(tmp_path, text):
    path = tmp_path / "broken"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_what_cannot_be_added(chroot_root, tmp_path):
    """A missing program, interpreter or library is named; nothing at all was written."""
    table = [
        ("/no/such/program", "there is no program '/no/such/program'"),
        ("no-such-program", "there is no program 'no-such-program' in PATH"),
        (tmp_path, "there is no program"),
        (
            broken(tmp_path, "#!/no/such/interpreter\n"),
            "script, and its interpreter '/no/such/interpreter' does not exist",
        ),
    ]
    for program, fragment in table:
        with pytest.raises(FileNotFoundError, match=fragment):
            chroot_root.add(program)
        assert os.listdir(chroot_root.path) == []
    with pytest.raises(FileNotFoundError, match="its interpreter 'no-such-thing' does not exist"):
        chroot_root.add(broken(tmp_path, "#!/usr/bin/env no-such-thing\n"))
    assert os.listdir(chroot_root.path) == []


def test_a_library_that_the_host_does_not_have(chroot_root, tmp_path):
    """Named before anything is written."""
    (tmp_path / "lib.c").write_text("int here(void) { return 1; }")
    (tmp_path / "main.c").write_text("int here(void); int main(void) { return here(); }")
    gcc = ["gcc", "-o"]
    try:
        subprocess.run([*gcc, tmp_path / "libhere.so", "-shared", tmp_path / "lib.c"], check=True, capture_output=True)
        subprocess.run(
            [*gcc, tmp_path / "main", tmp_path / "main.c", "-L", tmp_path, "-lhere"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    with pytest.raises(FileNotFoundError, match=r"main needs libhere.so, which the loader .* does not find"):
        chroot_root.add(tmp_path / "main")
    assert os.listdir(chroot_root.path) == []


def test_a_library_found_by_its_own_path(chroot_root, tmp_path):
    """RUNPATH with $ORIGIN, as relocatable programs have it."""
    (tmp_path / "lib.c").write_text("int here(void) { return 42; }")
    (tmp_path / "main.c").write_text("int here(void); int main(void) { return here(); }")
    (tmp_path / "lib").mkdir()
    gcc = ["gcc", "-o"]
    try:
        subprocess.run(
            [*gcc, tmp_path / "lib/libhere.so", "-shared", tmp_path / "lib.c"], check=True, capture_output=True
        )
        link = ["-L", tmp_path / "lib", "-lhere", "-Wl,-rpath,$ORIGIN/lib"]
        subprocess.run([*gcc, tmp_path / "main", tmp_path / "main.c", *link], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    chroot_root.add(tmp_path / "main")
    chroot_root.bind("/proc", "/proc")  # where the loader looks up what $ORIGIN is
    assert chroot_root.run([tmp_path / "main"], check=False).returncode == 42


# -- hostile roots: links in it that lead outside


#: Where a link in the root leads: {outside} is a directory of the host's, {up} the way there, {pid} pytest.
LINKS = {
    "absolute": "{outside}/etc",
    "relative": "{up}/etc",
    "many dots": "../../../../../../../../../../../../../../../../../../../..{outside}/etc",
    "dangling": "{outside}/etc/new",
    "/proc's magic": "/proc/{pid}/cwd/etc",
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize(
    "write",
    [
        lambda root, host: root.add(host),
        lambda root, host: root.add_tree(host.parent, "/etc"),
        lambda root, _: root.mkdir("/etc/below/more"),
        lambda root, _: root.mknod("/etc/node", stat.S_IFIFO | 0o600),
        lambda root, _: root.mknod("/etc/passwd", stat.S_IFREG | 0o600),
        lambda root, host: root.bind(host, "/etc/bound"),
        lambda root, host: root.bind(host.parent, "/etc/bound/directory"),
        lambda root, host: root.add_tree(host.parent, "/etc/passwd"),
    ],
    ids=[
        "add",
        "add_tree",
        "mkdir",
        "mknod",
        "mknod a file",
        "bind a file",
        "bind a directory",
        "add_tree over a file",
    ],
)
def test_nothing_is_written_outside(outside, root_at, tmp_path, monkeypatch, write, kind):
    """`etc` in the root is a link to a directory of the host: what is written there lands in the root, or nowhere."""
    monkeypatch.chdir(outside)
    path = tmp_path / "root"
    path.mkdir()
    target = LINKS[kind].format(outside=outside, up=os.path.relpath(outside, path), pid=os.getpid())
    (path / "etc").symlink_to(target)
    # A program of the host's in a directory called /etc, for `add`: the root's own `etc` is the trap.
    host = tmp_path / "host/etc/program"
    host.parent.mkdir(parents=True)
    shutil.copy("/bin/true", host)
    (path / str(host.parent.parent).lstrip("/")).mkdir(parents=True)
    (path / str(host.parent).lstrip("/")).symlink_to(target)
    root = root_at()
    etc = tree("/etc")
    try:
        write(root, host)
    except (OSError, ValueError) as error:  # refused is fine
        print(error)
    assert tree("/etc").keys() == etc.keys()


def test_the_host_s_own_passwd(outside, root_at, tmp_path):
    """A root whose /bin and /lib are links to directories of the host's stays a root: bash is copied, or refused."""
    path = tmp_path / "root"
    path.mkdir()
    for name in ("bin", "lib", "lib64", "usr", "etc"):
        (path / name).symlink_to(outside / "etc")
    root = root_at()
    try:
        root.add("/bin/sh")
    except OSError:
        return
    assert root.run(["/bin/sh", "-c", "pwd"]).stdout == "/\n"


def test_a_file_in_the_root_that_is_a_link_is_replaced(outside, root_at, tmp_path):
    """Its target is not written to."""
    host = tmp_path / "host-program"
    shutil.copy("/bin/true", host)
    path = tmp_path / "root"
    place = path / str(host.parent).lstrip("/")
    place.mkdir(parents=True)
    (place / host.name).symlink_to(outside / "etc/passwd")
    root_at().add(host)
    assert not (place / host.name).is_symlink()
    assert (place / host.name).read_bytes() == host.read_bytes()


def test_a_hard_link_in_the_root_is_not_written_through(outside, root_at, tmp_path):
    """The host's file keeps its content: the name in the root is made anew."""
    host = tmp_path / "host-program"
    shutil.copy("/bin/true", host)
    path = tmp_path / "root"
    place = path / str(host.parent).lstrip("/")
    place.mkdir(parents=True)
    os.link(outside / "etc/passwd", place / host.name)
    root_at().add(host)
    assert (place / host.name).stat().st_nlink == 1


def test_links_in_a_copied_tree_are_not_followed(outside, chroot_root, tmp_path):
    """A tree of the host's with a link, then the same name as a directory: written into the root or refused."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "etc").symlink_to(outside / "etc")
    (second / "etc").mkdir(parents=True)
    (second / "etc/passwd").write_text("from the tree")
    chroot_root.add_tree(first, "/")
    try:
        chroot_root.add_tree(second, "/")
    except OSError:
        return
    assert (outside / "etc/passwd").read_text() == "of the host"


def test_removing_a_root_follows_no_link(outside, isolation):
    """What links lead to stays."""
    root = isolation.chroot_root()
    path = root.path
    (path / "link").symlink_to(outside)
    (path / "etc").symlink_to(outside / "etc")
    root.close()
    assert not path.exists()


def test_reading_follows_no_link_out_either(root_at, tmp_path):
    """Looking for what a program lacks, the host's files are not mistaken for the root's."""
    path = tmp_path / "root"
    path.mkdir()
    (path / "bin").symlink_to("../../../../../../../../usr/bin")
    with pytest.raises(FileNotFoundError, match="there is no /bin/sh in the root"):
        root_at().run(["/bin/sh", "-c", "true"])


# -- bad input


def test_a_path_through_a_link(isolation, nothing_left, tmp_path):
    """A root given by way of a symbolic link could be another tomorrow: refused, with where it leads to."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/below").mkdir()
    for path in (tmp_path / "link", tmp_path / "link/below"):
        with nothing_left(), pytest.raises(ValueError, match=rf"leads through a symbolic link.*{path.resolve()}"):
            isolation.chroot_root(path=path)


@pytest.mark.parametrize(
    "path, fragment",
    [
        ("/", "is the root that pytest itself lives in"),
        ("//", "is the root that pytest itself lives in"),
        ("/tmp/..", "is the root that pytest itself lives in"),
        ("/no/such/directory", "is no directory"),
        ("/etc/passwd", "is no directory"),
        ("/etc/passwd/below", "is no directory"),
        ("/tmp/a\0b", "path='/tmp/a"),
        ("", "path=''"),
    ],
)
def test_a_root_that_cannot_be(isolation, nothing_left, path, fragment):
    """Refused by name."""
    with nothing_left(), pytest.raises(ValueError, match=fragment):
        isolation.chroot_root(path=path)


@pytest.mark.parametrize("path", ["", "a\0b", "..", "/a/../b", "../outside", "a/.."])
@pytest.mark.parametrize(
    "write",
    [
        lambda root, path: root.mkdir(path),
        lambda root, path: root.mknod(path, stat.S_IFIFO | 0o600),
        lambda root, path: root.bind("/usr", path),
        lambda root, path: root.add_tree("/usr/share/doc/bash", path),
    ],
    ids=["mkdir", "mknod", "bind", "add_tree"],
)
def test_a_path_below_the_root_that_cannot_be(chroot_root, write, path):
    """Without `..` and NUL."""
    with pytest.raises(ValueError, match=r"path=.*allowed is a path below the root, without `..` and NUL"):
        write(chroot_root, path)
    assert os.listdir(chroot_root.path) == []


@pytest.mark.parametrize("program", ["", "a\0b"])
def test_a_program_that_cannot_be(isolation, nothing_left, program):
    """Neither for a new root nor for one that is there."""
    root = isolation.chroot_root()
    with nothing_left():
        with pytest.raises(ValueError, match="program="):
            isolation.chroot_root(program)
        with pytest.raises(ValueError, match="program="):
            root.add(program)


def test_half_filled_is_not_built(isolation, nothing_left):
    """The first program was there, the second is not: no directory is left."""
    with nothing_left(), pytest.raises(FileNotFoundError, match="no-such-program"):
        isolation.chroot_root("/bin/sh", "no-such-program")


def test_what_cannot_be_bound(chroot_root, nothing_left):
    """A source that is not there."""
    with nothing_left(), pytest.raises(FileNotFoundError, match="/no/such/source"):
        chroot_root.bind("/no/such/source", "/mnt")
    assert os.listdir(chroot_root.path) == []


def test_what_cannot_be_copied(chroot_root):
    """A file is no directory, and one that is not there neither."""
    for source in ("/etc/passwd", "/no/such/directory"):
        with pytest.raises(NotADirectoryError):
            chroot_root.add_tree(source, "/copy")
    assert os.listdir(chroot_root.path) == []


# -- its end


def test_it_is_removed(nothing_left, warm):
    """Files, devices, unreadable directories and all."""
    with nothing_left():
        with ChrootRoot("/bin/sh") as root:
            path = root.path
            root.mkdir("/closed", 0)
            root.mknod("/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            root.run(["/bin/sh", "-c", "echo > /made-inside"])
        assert not path.exists()


def test_a_given_directory_stays(isolation, tmp_path):
    """With what was put into it."""
    path = tmp_path / "mine"
    path.mkdir()
    with ChrootRoot("/bin/sh", path=path) as root:
        root.run(["/bin/sh", "-c", "echo > /made-inside"])
    assert (path / "made-inside").exists()


def test_processes_in_it_end_with_it(isolation, gone):
    """Daemons too."""
    root = isolation.chroot_root("/bin/sh", "/bin/sleep")
    pid = int(root.run(["/bin/sh", "-c", "/bin/sleep 1000 & echo $!"]).stdout)
    root.close()
    gone(pid)


def test_somebody_removed_it_already(isolation):
    """Closing it is no error: it is provably gone."""
    root = ChrootRoot("/bin/sh")
    shutil.rmtree(root.path)
    root.close()


def test_a_closed_root(isolation):
    """Says so."""
    root = isolation.chroot_root()
    root.close()
    for use in (
        lambda: root.run(["true"]),
        lambda: root.add("/bin/sh"),
        lambda: root.mkdir("/x"),
        lambda: root.path,
        lambda: root.bind("/usr", "/usr"),
        lambda: root.call_in_child(os.getpid),
    ):
        with pytest.raises(ClosedError, match=r"chroot_root .* is closed"):
            use()


# -- and these tests themselves


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user could not write there anyway: needs root")
@pytest.mark.parametrize("folder", ["/", "/etc", "/usr/bin", "/var", "/root"])
def test_a_root_that_leaks_could_not_hurt_this_machine(folder):
    """Here the machine's own directories are read-only: a test that goes wrong fails, and breaks nothing."""
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(f"{folder}/pytest-isolation-canary", os.O_WRONLY | os.O_CREAT | os.O_EXCL)

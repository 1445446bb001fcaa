"""Roots: a directory filled with just what is wanted, entered by chroot(2), or for good by pivot_root(2)."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from pytest_isolation._kernel import elf, syscalls, uapi
from pytest_isolation._kernel import root as _root
from pytest_isolation._state import ledger
from pytest_isolation._state.keeper_client import start_run
from pytest_isolation._state.run import run
from pytest_isolation._state.spawner import spawner
from pytest_isolation.errors import KernelError
from pytest_isolation.objects._entering import Entry
from pytest_isolation.objects._object import KernelObject, asking_for
from pytest_isolation.objects._place import Place
from pytest_isolation.objects._process import Process, kill_all

if TYPE_CHECKING:
    from collections.abc import Iterable

StrPath = str | os.PathLike[str]
_RESOLVE_NO_SYMLINKS = 0x04
_LD_CACHE = "/etc/ld.so.cache"


@final
class ChrootRoot(KernelObject, Place):
    """A root of one's own, empty until something is added; commands in it see nothing else of the file system.

    Makes a directory, and a mount namespace once something is bound into it or `pivot` is asked for; both are
    removed with it. Needs CAP_SYS_CHROOT; CAP_SYS_ADMIN for `bind` and `pivot`.

    chroot(2) is no prison: a privileged process can leave. With `pivot` there is nothing left to leave to.

    Args:
        programs: added at once, see `add`.
        path: an existing directory to be the root, which is not removed at the end; None for a new one.
        pivot: enter by pivot_root(2), in a mount namespace that has nothing but the root.
    """

    kind: ClassVar[str] = "chroot_root"

    def __init__(self, *programs: StrPath, path: StrPath | None = None, pivot: bool = False) -> None:
        if path is not None:
            path = _check_root(path)
        self._pivot = pivot
        self._create(lambda: self._make(path, programs), on_spawner=False)

    def _make(self, path: str | None, programs: Iterable[StrPath]) -> None:
        self._processes: list[Process] = []
        self._mnt: int | None = None
        if path is None:
            path = os.path.join(tempfile.gettempdir(), f"pytest-isolation-root-{secrets.token_hex(16)}")
            start_run()
            entry = ledger.Entry(run().id, "directory", path=path)
            self._teardown.push("strike the directory off the ledger", entry.strike)
            os.mkdir(path, 0o755)
            self._teardown.push(f"remove {path}", lambda: _remove(path))
        self._path = path
        self._fd = self._teardown.hold(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        self._root = _root.Root(self._fd)
        self._teardown.push("end the processes in it", self._end_processes)
        for program in programs:
            self._add(program, libraries=True)

    def _end_processes(self) -> None:
        while self._processes:
            self._processes.pop().end()
        inside = []
        for pid in run().members() if run().joined else []:
            try:
                if os.path.samestat(os.stat(f"/proc/{pid}/root/"), os.fstat(self._fd)):
                    inside.append(pid)
            except OSError:
                continue
        kill_all(inside)

    def _started(self, process: Process) -> None:
        self._processes = [known for known in self._processes if known.returncode is None]
        self._processes.append(process)

    @property
    def path(self) -> Path:
        """Where the root lies outside."""
        self._check_open()
        return Path(self._path)

    # -- filling it

    def add(self, *programs: StrPath, libraries: bool = True) -> None:
        """Bring programs and exactly what they load: loader, libraries, script interpreter; links stay links.

        Args:
            programs: paths, or names to be found in PATH; each comes to the same place in the root.
            libraries: False brings the file alone.

        Raises:
            FileNotFoundError: there is no such program, library or interpreter on the host; the message names it.
        """
        self._check_open()
        for program in programs:
            self._add(program, libraries=libraries)

    def _add(self, program: StrPath, *, libraries: bool) -> None:
        path = _find(program)
        wanted = _needs(path) if libraries else []
        for one in [path, *wanted]:  # all are known to be there before the first is written
            self._root.bring(one)
        # Where /bin is a link to the folder it is in, it is called by that name as well (`#!/bin/sh`).
        for link in ("/bin", "/sbin"):
            if os.path.islink(link) and os.path.samefile(link, os.path.dirname(path)):
                self._root.symlink(link, os.readlink(link))

    def add_tree(self, source: StrPath, target: StrPath | None = None) -> None:
        """Copy a directory of the host, links as links, to `target` (by default the same place)."""
        self._check_open()
        source = os.path.abspath(source)
        base = _root.check(source if target is None else target)
        if not os.path.isdir(source):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), source)
        for folder, directories, files in os.walk(source):
            here = base + folder[len(source) :]
            os.close(self._root.directory(here, stat.S_IMODE(os.stat(folder).st_mode)))
            for name in [*directories, *files]:
                original, copy = os.path.join(folder, name), f"{here}/{name}"
                mode = os.stat(original, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    self._root.symlink(copy, os.readlink(original))
                elif stat.S_ISREG(mode):
                    self._root.write(copy, original)

    def mkdir(self, path: StrPath, mode: int = 0o755) -> None:
        """A directory in the root, with the parents it needs; nothing happens when it is there."""
        self._check_open()
        os.close(self._root.directory(_root.check(path), mode))

    def mknod(self, path: StrPath, mode: int, device: int = 0) -> None:
        """A device node or fifo: `mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))`. mknod(2)

        Raises:
            KernelError: EEXIST; EPERM for devices without CAP_MKNOD.
        """
        self._check_open()
        self._root.mknod(_root.check(path), mode, device)

    def bind(self, source: StrPath, target: StrPath, *, readonly: bool = False) -> None:
        """Show a directory or file of the host at `target`, for what runs in the root only.

        `target` is made where it is missing. The bind lives in a mount namespace of the root's own: removing the root
        never touches what was bound.

        Raises:
            FileNotFoundError: there is no `source`.
        """
        self._check_open()
        source, inside = os.path.realpath(source), _root.check(target)
        if not os.path.exists(source):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        if os.path.isdir(source):
            os.close(self._root.directory(inside))
        elif not self._root.exists(inside):
            self._root.mknod(inside, stat.S_IFREG | 0o644, 0)
        with asking_for("bind"):
            spawner().run(self._bind, source, inside, readonly=readonly)

    def _bind(self, source: str, target: str, *, readonly: bool) -> None:
        tree = syscalls.open_tree(source, uapi.OPEN_TREE_CLONE | uapi.AT_RECURSIVE)
        try:
            if readonly:
                syscalls.mount_setattr(tree, uapi.MOUNT_ATTR_RDONLY)
            with spawner().entered([("mnt", self._mounts())]):
                base = os.open("/" if self._pivot else self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    place = _root.Root(base).open(target, os.O_PATH)
                    try:
                        syscalls.move_mount(tree, place)
                    finally:
                        os.close(place)
                finally:
                    os.close(base)
        finally:
            os.close(tree)

    def _mounts(self) -> int:
        """On the spawner thread: the root's own mount namespace, made on first use."""
        if self._mnt is None:
            thread = spawner()
            syscalls.unshare(uapi.CLONE_NEWNS)
            try:
                self._mnt = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                syscalls.mount(None, "/", None, uapi.MS_REC | uapi.MS_PRIVATE)
                if self._pivot:
                    syscalls.mount(self._path, self._path, None, uapi.MS_BIND | uapi.MS_REC)
                    os.chdir(self._path)
                    # The old root is put over the new one, and let go of: nothing else is left to go to.
                    syscalls.pivot_root(".", ".")
                    syscalls.umount2(".", uapi.MNT_DETACH)
                self._teardown.hold(self._mnt)
            except BaseException:
                if self._mnt is not None:
                    os.close(self._mnt)
                    self._mnt = None
                raise
            finally:
                thread.restore(["mnt"])
        return self._mnt

    # -- living in it

    def _entries(self) -> tuple[Entry, ...]:
        self._check_open()
        if self._pivot and self._mnt is None:
            with asking_for("pivot_root"):
                spawner().run(self._mounts)
        path = "/" if self._pivot else self._path
        root = Entry("root", self._fd, str(self), path=path)
        return (root,) if self._mnt is None else (Entry("mnt", self._mnt, f"the mounts of {self}"), root)

    def _explain_missing(self, words: list[str | bytes] | str) -> None:
        program = os.fsdecode("/bin/sh" if isinstance(words, str) else words[0])
        found = program if "/" in program else _which_inside(self._root, program)
        file = None if found is None else self._root.read(found)
        if file is None:
            message = f"there is no {program} in the root {self._path}: add({program!r}) brings it"
            raise FileNotFoundError(errno.ENOENT, message) from None
        with file:
            script = elf.script_interpreter(file)
            needed = script[0] if script else elf.interpreter(file)
        if needed is not None and not self._root.exists(needed):
            what = "interpreter" if script else "loader"
            message = f"{found} is in the root, but not the {what} that it names, {needed}: add({found!r}) brings it"
            raise FileNotFoundError(errno.ENOENT, message) from None

    def __str__(self) -> str:
        return f"{self.kind} {getattr(self, '_path', '')}".strip()


def _remove(path: str) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise


def _which_inside(root: _root.Root, name: str) -> str | None:
    for folder in os.get_exec_path():
        if root.exists(f"{folder}/{name}"):
            return f"{folder}/{name}"
    return None


def _check_root(path: StrPath) -> str:
    if not os.fspath(path) or "\0" in os.fspath(path):
        message = f"path={path!r}: allowed is a directory, named without NUL"
        raise ValueError(message)
    text = os.path.abspath(path)
    if os.path.isdir(text) and os.path.samefile(text, "/"):
        message = f"path={path!r} is the root that pytest itself lives in"
        raise ValueError(message)
    try:
        os.close(syscalls.openat2(uapi.AT_FDCWD, text, os.O_PATH | os.O_DIRECTORY, 0, _RESOLVE_NO_SYMLINKS))
    except KernelError as error:
        if error.errno == errno.ELOOP:
            message = f"path={path!r} leads through a symbolic link: pass where it leads to, {os.path.realpath(text)!r}"
            raise ValueError(message) from None
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            message = f"path={path!r} is no directory"
            raise ValueError(message) from None
        raise
    return text


def _find(program: StrPath) -> str:
    text = os.fspath(program)
    if not text or "\0" in text:
        message = f"program={program!r}: allowed is a path, or a name to be found in PATH"
        raise ValueError(message)
    found = os.path.abspath(text) if "/" in text else shutil.which(text)
    if found is None or not os.path.isfile(found):
        where = "" if "/" in text else f" in PATH ({os.environ.get('PATH', '')})"
        message = f"there is no program {text!r}{where}"
        raise FileNotFoundError(errno.ENOENT, message)
    return found


def _needs(path: str, depth: int = 0) -> list[str]:
    """What the program at `path` needs besides itself."""
    with open(path, "rb") as file:
        loader = elf.interpreter(file)
        script = elf.script_interpreter(file)
    if script is not None:
        program, argument = script
        # `#!/usr/bin/env python3`: env finds the real interpreter in PATH.
        names = [program, *argument.split()[:1]] if os.path.basename(program) == "env" else [program]
        needed = []
        for name in names:
            if depth > 4 or ("/" in name and not os.path.isfile(name)) or ("/" not in name and not shutil.which(name)):
                message = f"{path} is a script, and its interpreter {name!r} does not exist"
                raise FileNotFoundError(errno.ENOENT, message)
            found = _find(name)
            needed += [found, *_needs(found, depth + 1)]
        return needed
    if loader is None:
        return []
    if not os.path.isfile(loader):
        message = f"{path} names the loader {loader!r}, which does not exist"
        raise FileNotFoundError(errno.ENOENT, message)
    libraries = elf.libraries(path, loader)
    if libraries.missing:
        message = f"{path} needs {', '.join(libraries.missing)}, which the loader {loader} does not find"
        raise FileNotFoundError(errno.ENOENT, message)
    cache = [_LD_CACHE] if libraries.by_cache and os.path.isfile(_LD_CACHE) else []
    return [loader, *libraries.paths, *cache]

"""What this run made that would outlive its processes, on disk before it is made: names, links, directories, cgroups.

One directory a run, mode 0700, under /run/pytest-isolation (an ordinary user: below XDG_RUNTIME_DIR or the temporary
directory). Each entry is a file of its own, written before the object is made and removed after the object is. So
what a dead run left is exactly what its directory lists, and the keeper removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any


def _parent() -> Path:
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run/pytest-isolation")
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base, f"pytest-isolation-{os.geteuid()}")


def directory(run_id: str) -> Path:
    """Where the run's ledger lies, whether it exists or not."""
    return _parent() / run_id


class Entry:
    """One object on the ledger, from before it is made until it is gone."""

    def __init__(self, run_id: str, kind: str, **proof: Any) -> None:
        folder = str(directory(run_id))
        self._path = f"{folder}/{secrets.token_hex(16)}"
        data = json.dumps({"kind": kind, **proof}).encode()
        for _ in range(100):  # another run may remove the empty parent between the two calls
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            # In one write: a reader meets all of it, or nothing, and then the object has not been made.
            try:
                os.write(fd, data)
            except BaseException:
                os.unlink(self._path)
                raise
            finally:
                os.close(fd)
            return
        message = f"cannot create {folder}"
        raise FileNotFoundError(message)

    def strike(self) -> None:
        """The object is gone: take the entry off. The directory stays until the run ends."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def tidy(folder: Path) -> None:
    """Remove the ledger in `folder`, and what it lies in, if they are empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def remove_all(folder: str | Path, kind: str | None = None) -> None:
    """Remove every object (of that kind) that the ledger in `folder` lists, then the ledger. For the keeper."""
    folder = Path(folder)
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(Exception):  # each object on its own; what cannot be removed stays listed
            if text := path.read_text(encoding="utf-8"):
                entry = json.loads(text)
                if kind not in {None, entry["kind"]}:
                    continue
                remove(entry)
            path.unlink()
    tidy(folder)


def remove(entry: dict[str, Any]) -> None:
    """Remove one object, if it is still the one that was listed."""
    if entry["kind"] == "published":
        unpublish(entry["path"])
    elif entry["kind"] == "directory":
        if os.path.ismount(entry["path"]):  # seen from the run's own mount namespace
            from pytest_isolation._kernel import syscalls, uapi

            syscalls.umount2(entry["path"], uapi.MNT_DETACH)
        shutil.rmtree(entry["path"])  # its name holds 128 random bits: nobody else's
    elif entry["kind"] == "cgroup":
        from pytest_isolation._state import cgroups

        cgroups.remove(entry["paths"])  # their names hold 128 random bits: nobody else's
    elif entry["kind"] == "link":
        from pytest_isolation._kernel import rtnetlink

        with rtnetlink.Socket() as socket:
            if any(link.alias == entry["alias"] for link in socket.links() if link.ifname == entry["ifname"]):
                socket.do(rtnetlink.delete_link(socket.ifindexes(entry["ifname"])[0]))


def published_directory(path: Path) -> None:
    """Make the directory of a published name where it is missing, and mark it, by the sticky bit, as made by a run."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o755 | stat.S_ISVTX)


def leave_published_directory(path: Path) -> None:
    """Remove it, if a run made it and it is empty."""
    with contextlib.suppress(OSError):
        if path.stat().st_mode & stat.S_ISVTX:
            path.rmdir()


def unpublish(path: str) -> None:
    """Take a published name away: its bind mount, its file, and the directory if a run made it and it is empty now."""
    from pytest_isolation._kernel import syscalls, uapi

    with contextlib.suppress(OSError):
        syscalls.umount2(path, uapi.MNT_DETACH)
    Path(path).unlink(missing_ok=True)
    leave_published_directory(Path(path).parent)

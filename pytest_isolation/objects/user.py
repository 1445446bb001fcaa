"""user namespaces: other ids inside than outside, and all capabilities over what they own. user_namespaces(7)"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, TypeAlias, final

from pytest_isolation._kernel import procfs
from pytest_isolation.objects._entering import Entry, Ids
from pytest_isolation.objects._namespace import Namespace

#: (first id inside, first id outside, how many)
IdMap: TypeAlias = Sequence[tuple[int, int, int]]
_CAP_SETGID = 6
_ID_MAX = 0xFFFFFFFF
_EXTENTS_MAX = 340


@final
class UserNamespace(Namespace):
    """A user namespace: whoever is inside has the mapped ids, and every capability over what the namespace owns.

    Makes one user namespace, which ends with its last reference. Commands and forked children enter it, pytest never
    does. Needs no privilege where the kernel lets ordinary users make one; mapping ids other than one's own needs
    CAP_SETUID and CAP_SETGID.

    Args:
        uid_map: extents (first uid inside, first uid outside, count), at most 340; by default root inside is the
            caller outside.
        gid_map: likewise for gids.
        setgroups: may processes inside call setgroups(2)? An unprivileged caller has to deny it. By default allowed
            where the caller has CAP_SETGID, denied otherwise.
    """

    kind: ClassVar[str] = "user_namespace"
    namespace: ClassVar[str] = "user"
    _nsenter: ClassVar[str] = "user"

    def __init__(
        self, *, uid_map: IdMap | None = None, gid_map: IdMap | None = None, setgroups: bool | None = None
    ) -> None:
        self.uid_map: IdMap = _check_map("uid_map", [(0, os.geteuid(), 1)] if uid_map is None else uid_map)
        self.gid_map: IdMap = _check_map("gid_map", [(0, os.getegid(), 1)] if gid_map is None else gid_map)
        if setgroups not in {None, True, False}:
            message = f"setgroups={setgroups!r}: allowed are True, False and None"
            raise ValueError(message)
        self.setgroups: bool = procfs.has_capability(_CAP_SETGID) if setgroups is None else bool(setgroups)
        self._create(self._make, on_spawner=False)

    def _make(self) -> None:
        self._processes = []
        files = [("setgroups", "allow" if self.setgroups else "deny")]
        files += [
            (f"{what}_map", _as_text(extents)) for what, extents in (("uid", self.uid_map), ("gid", self.gid_map))
        ]
        (self._fd,) = self._ask_for_namespace(None, files=files)

    @property
    def ids(self) -> Ids:
        """What a command becomes inside: uid and gid 0 where they are mapped, else the first mapped ones."""
        return Ids(_first(self.uid_map), _first(self.gid_map), self.setgroups)

    def as_request(self) -> list[int | bool]:
        """For the keeper, which enters it to make other things that it owns."""
        self._check_open()
        return list(self.ids)

    def _entries(self) -> tuple[Entry, ...]:
        self._check_open()
        return (Entry("user", self._fd, str(self), ids=self.ids),)


def _first(extents: IdMap) -> int:
    inside = [first for first, _, count in extents if first <= 0 < first + count]
    return 0 if inside else extents[0][0]


def _as_text(extents: IdMap) -> str:
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents)


def _check_map(name: str, extents: IdMap) -> IdMap:
    extents = [tuple(extent) for extent in extents]  # type: ignore[misc]
    if not 1 <= len(extents) <= _EXTENTS_MAX:
        message = f"{name}={extents!r}: allowed are 1 to {_EXTENTS_MAX} extents"
        raise ValueError(message)
    for extent in extents:
        fits = len(extent) == 3 and all(isinstance(number, int) for number in extent)
        if not fits or extent[2] < 1 or not all(first >= 0 and first + extent[2] <= _ID_MAX for first in extent[:2]):
            message = (
                f"{name}: extent {extent!r}: allowed is (first id inside, first id outside, count), "
                f"ids 0 to {_ID_MAX - 1}"
            )
            raise ValueError(message)
    for position, column in enumerate(("inside", "outside")):
        ranges = sorted((extent[position], extent[position] + extent[2]) for extent in extents)
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                message = f"{name}={extents!r}: ids {column} overlap at {start}"
                raise ValueError(message)
    return extents

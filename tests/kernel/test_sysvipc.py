# ruff: noqa: E501 - captured lines stay whole
"""The tables of /proc/sysvipc, over captured text."""

import pytest

from pytest_isolation.objects import ipc

SHM = """\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
1347545188          0   644                   100  7182     0      0     0     0     0     0          0          0 1764921600                     0                     0
         0      32769  1600           68719476736     1     2      3  1000  1000     0     0          1          2          3                  4096                     0
"""
SEM = """\
       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime
        -5          1   660          3     0     0     0     0          0 1764921600
"""
MSG = """\
       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime
      4660          2   600           5          1     9     0     0     0     0     0          1          0          1
"""


@pytest.fixture
def table(monkeypatch, tmp_path):
    """`_table` over a text."""

    def read(text):
        path = tmp_path / "table"
        path.write_text(text)
        real = open
        monkeypatch.setattr("builtins.open", lambda _, **options: real(path, **options))
        try:
            return ipc._table("shm")
        finally:
            monkeypatch.undo()

    return read


def test_segments(table):
    """Sizes of any length, permissions in octal, marks of destroyed ones included."""
    first, second = table(SHM)
    assert (first["key"], first["shmid"], first["perms"], first["size"], first["nattch"]) == (
        1347545188,
        0,
        0o644,
        100,
        0,
    )
    assert (second["shmid"], second["perms"], second["size"], second["nattch"], second["uid"]) == (
        32769,
        0o1600,
        1 << 36,
        3,
        1000,
    )


def test_semaphores_and_queues(table):
    """Keys may be negative."""
    (semaphores,) = table(SEM)
    assert (semaphores["key"], semaphores["nsems"], semaphores["perms"]) == (-5, 3, 0o660)
    (queue,) = table(MSG)
    assert (queue["msqid"], queue["cbytes"], queue["qnum"]) == (2, 5, 1)


@pytest.mark.parametrize("text", [SHM, SEM, MSG])
def test_an_empty_table(table, text):
    """A header alone."""
    assert table(text.splitlines()[0] + "\n") == []

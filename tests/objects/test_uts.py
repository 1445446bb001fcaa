"""uts namespaces, by the word of uname(2) and /proc."""

import os
import socket
from pathlib import Path

import pytest

from pytest_isolation import UtsNamespace

DOMAIN = Path("/proc/sys/kernel/domainname")


@pytest.fixture(autouse=True)
def outside_stays():
    """The machine keeps its names."""
    before = socket.gethostname(), DOMAIN.read_text()
    yield
    assert (socket.gethostname(), DOMAIN.read_text()) == before


def seen(space):
    """What a process inside sees: host name and domain name."""
    return tuple(space.run("uname -n; cat /proc/sys/kernel/domainname", shell=True).stdout.splitlines())


def test_it_starts_as_a_copy(uts_namespace):
    """With the names outside."""
    assert seen(uts_namespace) == (socket.gethostname(), DOMAIN.read_text().strip())
    assert (uts_namespace.hostname, uts_namespace.domainname) == seen(uts_namespace)


@pytest.mark.parametrize("uts_namespace", [{"hostname": "happy.life.com", "domainname": "life"}], indirect=True)
def test_names_of_its_own(uts_namespace):
    """From the first moment."""
    assert seen(uts_namespace) == ("happy.life.com", "life")


def test_names_are_set(uts_namespace):
    """By assignment, and by a process inside."""
    uts_namespace.hostname = "one"
    uts_namespace.domainname = "two"
    assert seen(uts_namespace) == ("one", "two")
    uts_namespace.run(["hostname", "three"])
    assert uts_namespace.hostname == "three"
    assert uts_namespace.call(os.uname).nodename == "three"


def test_two_do_not_know_each_other(isolation):
    """Each keeps its own."""
    one, two = isolation.uts_namespace(hostname="one"), isolation.uts_namespace(hostname="two")
    assert (seen(one)[0], seen(two)[0]) == ("one", "two")


def test_64_bytes_fit(isolation):
    """And not one more."""
    space = isolation.uts_namespace(hostname="x" * 64, domainname="y" * 64)
    assert seen(space) == ("x" * 64, "y" * 64)


@pytest.mark.parametrize("user", [False, True])
def test_one_that_a_user_namespace_owns(isolation, user):
    """Names given at once or later."""
    owner = isolation.user_namespace()
    space = isolation.uts_namespace(user=owner, **({"hostname": "given"} if user else {}))
    if user:
        assert seen(space)[0] == "given"
    space.hostname = "later"
    assert seen(space)[0] == "later"


BAD = ["x" * 65, "ü" * 33, "a\0b", 7, b"bytes"]


@pytest.mark.parametrize("what", ["hostname", "domainname"])
@pytest.mark.parametrize("name", BAD)
def test_a_name_that_cannot_be(isolation, uts_namespace, nothing_left, what, name):
    """Refused at the start and later, with what is allowed; nothing is made, nothing is changed."""
    before = seen(uts_namespace)
    with nothing_left():
        with pytest.raises(ValueError, match=rf"{what}=.*allowed are at most 64 bytes without NUL"):
            isolation.uts_namespace(**{what: name})
        with pytest.raises(ValueError, match=rf"{what}=.*allowed are at most 64 bytes without NUL"):
            setattr(uts_namespace, what, name)
    assert seen(uts_namespace) == before


def test_nothing_is_left(nothing_left):
    """It ends with its last reference."""
    with nothing_left(), UtsNamespace(hostname="gone") as space:
        assert seen(space)[0] == "gone"

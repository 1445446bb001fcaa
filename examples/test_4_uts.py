"""Chapter 4: uts, a name of one's own.

The smallest namespace: it holds two strings, the host name and the NIS domain name. (UTS is "UNIX time-sharing
system", from the structure that uname(2) fills.) Without it, a container that sets its host name would rename the
whole machine.
"""

import os
import socket

from pytest_isolation import inside


def test_a_new_one_starts_with_the_old_name(uts_namespace):
    """It is a copy: as long as nobody changes it, nothing is different."""
    assert uts_namespace.run(["hostname"]).stdout == f"{os.uname().nodename}\n"


def test_a_name_inside_and_the_old_one_outside(uts_namespace):
    """hostname(1), run inside, changes the name inside; the machine keeps its own."""
    before = os.uname().nodename
    uts_namespace.run(["hostname", "happy.life.com"])
    assert uts_namespace.run(["hostname"]).stdout == "happy.life.com\n"
    assert uts_namespace.run(["uname", "-n"]).stdout == "happy.life.com\n"
    assert os.uname().nodename == before != "happy.life.com"


def test_python_can_step_inside_as_well(uts_namespace):
    """No command is needed: a block of the test itself can be inside, and comes out of it again."""
    before = socket.gethostname()
    with inside(uts_namespace):
        socket.sethostname("happy.life.com")
        assert socket.gethostname() == "happy.life.com"
    assert socket.gethostname() == before
    assert uts_namespace.hostname == "happy.life.com"


def test_each_has_its_own(isolation):
    """Two namespaces, two names, and a domain name that belongs to one of them."""
    one = isolation.uts_namespace(hostname="happy.life.com", domainname="life")
    other = isolation.uts_namespace(hostname="quiet.life.com")
    assert (one.hostname, other.hostname) == ("happy.life.com", "quiet.life.com")
    assert one.domainname == "life"
    assert one.run(["cat", "/proc/sys/kernel/domainname"]).stdout == "life\n"
    assert other.domainname != "life"

"""Containers: what they are made of, and what holds inside."""

import os
import stat

import pytest

from pytest_isolation import Container, KernelError


@pytest.fixture
def box(isolation):
    return isolation.container(
        {"etc": {"motd": "hello\n"}}, programs=["sh", "cat", "ls"], memory_max="64M", pids_max=20
    )


def test_its_root_is_its_layers(box):
    """What is in a layer is there, with the programs, and nothing of the host's."""
    assert box.run(["cat", "/etc/motd"]).stdout == "hello\n"
    assert box.run(["ls", "/"]).stdout.split() == sorted({"etc", *os.listdir(box.system.path)})
    with pytest.raises(FileNotFoundError):
        box.run(["true"])


def test_its_devices_work_and_its_tmp_can_be_written(box):
    """Anybody may write to them, whatever the umask."""
    box.run("echo > /dev/null; echo mine > /tmp/note", shell=True)
    assert stat.S_IMODE((box.overlay.merged / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((box.overlay.merged / "dev/null").stat().st_mode) == 0o666
    assert (box.overlay.upper / "tmp/note").read_text() == "mine\n"


def test_every_namespace_but_time_is_its_own(box):
    """And those are the ones of its parts."""
    names = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    found = box.call_in_child(lambda: {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in names})
    assert not [name for name in names if found[name] == os.stat(f"/proc/self/ns/{name}").st_ino]
    parts = [box.cgroup_namespace, box.ipc, box.net, box.pid, box.user, box.uts]
    assert [found[part.namespace] for part in parts] == [part.ns_id[1] for part in parts]


def test_its_root_has_no_power_outside(box):
    """What is everybody's cannot be changed by root inside; the host name is its own."""
    done = box.run("echo 1 > /proc/sys/kernel/panic", shell=True, check=False)
    assert "ermission denied" in done.stderr
    with pytest.raises(PermissionError):
        box.call_in_child(os.mknod, "/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    assert box.call_in_child(lambda: os.uname().nodename) == "container"


def test_its_limit_of_processes_holds(box):
    """EAGAIN, from the fork on."""
    box.cgroup.pids_max = 1
    done = box.run("ls & wait", shell=True, check=False)
    assert "fork" in done.stderr


def test_its_limit_of_memory_is_its_cgroups(box):
    """What runs in it is in the cgroup that has the limit."""
    assert box.cgroup.memory_max == 64 << 20
    with box.popen(["cat"], stdin=-1) as process:
        assert process.pid in box.cgroup.processes()


def test_it_goes_out_under_the_address_of_its_host(box, isolation):
    """A server beyond the host knows no way to the container, and needs none."""
    _, outside = isolation.veth_pair(
        netns=(box.host, None), ifnames=("eth1", "eth0"), ipv4=("10.2.0.1/24", "10.2.0.2/24"), ipv6=(None, None)
    )
    with outside.listen(81) as listening, box.net.connect(("10.2.0.2", 81)):
        listening.settimeout(10)
        peer, address = listening.accept()
        peer.close()
    assert address[0] == "10.2.0.1"


def test_its_parts_are_closed_with_it(box):
    """All of them, and they cannot be lifetimes of their own."""
    parts = [value for value in vars(box).values() if hasattr(value, "closed")]
    assert len(parts) == 13
    with pytest.raises(TypeError, match="closed by the builder"), box.cgroup:
        pass
    box.close()
    assert all(part.closed for part in parts)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"programs": "sh"}, TypeError, "programs='sh': allowed is a sequence"),
        ({"programs": ["no-such-program"]}, FileNotFoundError, "no-such-program"),
        ({"publish": {0: 80}}, ValueError, "publish={0: 80}: allowed"),
        ({"publish": {80: "http"}}, ValueError, "each 1 to 65535"),
        ({"publish": [80]}, TypeError, r"publish=\[80\]: allowed is a dict"),
        ({"volumes": "/etc"}, TypeError, "volumes='/etc': allowed is a dict"),
        ({"volumes": {"/data": "/no/such/directory"}}, FileNotFoundError, "/no/such/directory"),
        ({"memory_max": "much"}, ValueError, "much"),
        ({"pids_max": -5}, (ValueError, KernelError), "-5"),
        ({"hostname": "x" * 65}, ValueError, "hostname"),
    ],
)
def test_bad_input_is_named(options, error, words):
    """The message says which value, and what is allowed."""
    with pytest.raises(error, match=words):
        Container(**options)

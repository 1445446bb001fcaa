"""What every kind refuses alike: unknown options, use after its end, after a fork, after its builder."""

import gc
import os
import signal
import warnings

import pytest

import pytest_isolation
from pytest_isolation import ClosedError, Isolation, KernelError, PidNamespace, inside

#: What a process can live in, or has ends that are.
PLACES = [
    "netns",
    "veth_pair",
    "pid_namespace",
    "mount_namespace",
    "uts_namespace",
    "ipc_namespace",
    "user_namespace",
    "cgroup_namespace",
    "cgroup",
    "time_namespace",
    "chroot_root",
]
KINDS = [*PLACES, "iptables", "nftables"]
CLASSES = {
    "netns": "NetNamespace",
    "veth_pair": "VethPair",
    "pid_namespace": "PidNamespace",
    "mount_namespace": "MountNamespace",
    "uts_namespace": "UtsNamespace",
    "ipc_namespace": "IpcNamespace",
    "user_namespace": "UserNamespace",
    "cgroup_namespace": "CgroupNamespace",
    "cgroup": "Cgroup",
    "time_namespace": "TimeNamespace",
    "chroot_root": "ChrootRoot",
    "iptables": "Iptables",
    "nftables": "Nftables",
}


def place_of(made):
    """What one lives in: of a pair its first end."""
    return made.a if made.kind == "veth_pair" else made


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option(isolation, nothing_left, kind):
    """Named, by the builder and by the class; nothing was created."""
    with nothing_left():
        with pytest.raises(TypeError, match="no_such_option"):
            getattr(isolation, kind)(no_such_option=1)
        with pytest.raises(TypeError, match="no_such_option"):
            getattr(pytest_isolation, CLASSES[kind])(no_such_option=1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chroot_root"])
def test_an_option_without_its_name(isolation, nothing_left, kind):
    """Arguments are given by name."""
    with nothing_left(), pytest.raises(TypeError):
        getattr(isolation, kind)(True)  # noqa: FBT003 - what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_with_on_an_object_of_a_builder(isolation, nothing_left, kind):
    """It would be closed twice over: the error says what `with` means and what was meant."""
    made = getattr(isolation, kind)()
    with nothing_left():
        with pytest.raises(TypeError, match=r"closed by the builder that made it.*with inside"), made:
            pytest.fail("the block was entered")
        assert not made.closed


@pytest.mark.parametrize("kind", KINDS)
def test_with_on_a_fixture(request, kind):
    """Likewise."""
    made = request.getfixturevalue("cgroup_cpu" if kind == "cgroup" else kind)
    with pytest.raises(TypeError, match="with inside"), made:
        pytest.fail("the block was entered")


@pytest.mark.parametrize("kind", KINDS)
def test_with_is_the_lifetime_of_one_s_own(nothing_left, warm, kind):
    """Open inside the block, closed after it, also when the block fails."""
    make = getattr(pytest_isolation, CLASSES[kind])
    with nothing_left():
        with make() as made:
            assert not made.closed
        assert made.closed
        with pytest.raises(ZeroDivisionError), make() as made:
            raise ZeroDivisionError
        assert made.closed
        with pytest.raises(ClosedError, match=rf"{kind}.* is closed"), made:
            pytest.fail("the block was entered")


@pytest.mark.parametrize("kind", PLACES)
def test_a_closed_object(isolation, nothing_left, kind):
    """Every verb says that it is closed, and starts nothing; closing it again is fine."""
    made = getattr(isolation, kind)()
    place = place_of(made)
    made.close()
    made.close()
    with nothing_left():
        for verb, argument in (
            ("run", ["true"]),
            ("popen", ["true"]),
            ("call", os.getpid),
            ("call_in_child", os.getpid),
        ):
            with pytest.raises(ClosedError, match=rf"{kind}.* is closed"):
                getattr(place, verb)(argument)
        with pytest.raises(ClosedError, match=rf"{kind}.* is closed"):
            inside(place)
    assert "closed" in repr(made)
    for name in ("path", "ns_id", "enter_command"):
        if hasattr(type(made), name) and not callable(getattr(type(made), name)):
            with pytest.raises(ClosedError):
                getattr(made, name)


@pytest.mark.parametrize("kind", PLACES)
def test_after_a_fork(isolation, read_only_system, kind):
    """The child has let go of it: an error that names both processes, and nothing the parent would notice."""
    made = getattr(isolation, kind)()
    place = place_of(made)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = b"no error"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                made.close()  # does nothing
                try:
                    place.run(["true"])
                except ClosedError as error:
                    text = str(error).encode()
        finally:
            os.write(write_end, text)
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    assert f"belongs to process {os.getpid()}, this is process {pid}, a fork of it" in text
    assert not made.closed
    if kind == "chroot_root":
        made.add("/bin/true")
        place.run(["/bin/true"])
    else:
        assert place.run(["echo", "unharmed"]).stdout == "unharmed\n"


def test_a_fork_makes_its_own(isolation, nothing_left):
    """A forked child may build objects: it has a keeper and a run of its own, and leaves nothing."""
    isolation.netns().run(["true"])
    with nothing_left():
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            text = b"failed"
            try:
                with PidNamespace() as space:
                    text = space.run(["echo", "in the fork's"]).stdout.encode()
                pytest_isolation.objects._object.finish()
            finally:
                os.write(write_end, text)
                os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        assert text == b"in the fork's\n"


def test_a_namespace_that_died(isolation, nothing_left):
    """A pid namespace whose init was killed: every verb says so, with its status."""
    space = isolation.pid_namespace()
    space.run(["true"])
    os.kill(space.init_pid, signal.SIGKILL)
    space.wait_init()
    with nothing_left():
        for verb, argument in (("run", ["true"]), ("popen", ["true"]), ("call_in_child", os.getpid)):
            with pytest.raises(ClosedError, match="is dead: its init exited with -9"):
                getattr(space, verb)(argument)


def test_a_closed_builder(nothing_left, warm):
    """Its scope has ended."""
    with nothing_left():
        with Isolation() as builder:
            builder.netns()
        with pytest.raises(ClosedError, match="this builder is closed"):
            builder.netns()
        builder.close()


def test_a_builder_closes_last_first():
    """And goes on after a failure, which it reports with what failed."""
    builder = Isolation()
    order = []
    made = [builder.uts_namespace() for _ in range(3)]

    def fail():
        order.append("fails")
        message = "cannot be undone"
        raise OSError(message)

    for number, one in enumerate(made):
        one._teardown.push("remember", lambda number=number: order.append(number))
    made[1]._teardown.push("the step that fails", fail)
    with pytest.raises(ExceptionGroup) as caught:
        builder.close()
    assert order == [2, "fails", 1, 0]
    assert all(one.closed for one in made)
    (error,) = caught.value.exceptions[0].exceptions
    assert "the step that fails" in error.__notes__[0]


def test_an_object_that_nobody_closed(nothing_left, warm):
    """A ResourceWarning, and it is closed all the same."""
    with nothing_left(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pytest_isolation.NetNamespace()
        gc.collect()
    assert any(issubclass(one.category, ResourceWarning) and "unclosed netns" in str(one.message) for one in caught)


@pytest.mark.parametrize("limit", ["max_net_namespaces", "max_uts_namespaces"])
def test_a_limit_of_the_kernel_s(isolation, nothing_left, limit):
    """ENOSPC is explained: it is no full disk."""
    kind = {"max_net_namespaces": "netns", "max_uts_namespaces": "uts_namespace"}[limit]
    user = isolation.user_namespace()
    user.run(f"echo 0 >/proc/sys/user/{limit}", shell=True)
    with nothing_left(), pytest.raises(KernelError, match=r"ENOSPC.*/proc/sys/user/max_"):
        getattr(isolation, kind)(user=user)


def test_every_public_name_is_there():
    """What the package says it offers can be imported."""
    for name in pytest_isolation.__all__:
        assert getattr(pytest_isolation, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        pytest_isolation.no_such_name  # noqa: B018 - asking is what is refused

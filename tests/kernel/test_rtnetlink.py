"""rtnetlink messages, packed and read without a kernel."""

import errno
import socket
import struct
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from pytest_isolation import KernelError
from pytest_isolation._kernel import rtnetlink


@pytest.mark.parametrize("length", range(9))
def test_an_attribute_is_padded(length):
    """To 4 bytes, while its length says how much of it counts."""
    payload = bytes(range(1, length + 1))
    packed = rtnetlink.attribute(7, payload)
    assert len(packed) % 4 == 0
    assert struct.unpack_from("=HH", packed) == (4 + length, 7)
    assert rtnetlink.attributes(packed) == {7: payload}


def test_attributes_by_number():
    """Flags in the number do not count; of a repeated one the last does."""
    data = rtnetlink.u32(1, 10) + rtnetlink.text(0x8000 | 3, "eth0") + rtnetlink.u32(1, 11)
    assert rtnetlink.attributes(data) == {1: struct.pack("=I", 11), 3: b"eth0\0"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\x00\x00\x01\x00",
        b"\x03\x00\x01\x00\xff\xff\xff\xff",
        b"\xff\xff\x01\x00abcd",
    ],
)
def test_attributes_of_a_broken_message(data):
    """No hang, no error: what is there."""
    assert set(rtnetlink.attributes(data)) <= {1}


def test_a_veth_message():
    """Both ends where they belong, in one message."""
    pair = rtnetlink.new_veth(("left", "right"), mtu=1400, macs=(b"\x02\0\0\0\0\1", None), alias="mine")
    message = rtnetlink.in_netns(pair, 9)
    assert message.kind == rtnetlink.RTM_NEWLINK
    assert message.flags == rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL
    values = rtnetlink.attributes(message.payload[16:])
    assert (values[3], values[1], values[20]) == (b"left\0", b"\x02\0\0\0\0\1", b"mine\0")
    assert struct.unpack("=I", values[4])[0] == 1400
    info = rtnetlink.attributes(values[18])
    assert info[1] == b"veth\0"
    peer = rtnetlink.attributes(rtnetlink.attributes(info[2])[1][16:])
    assert (peer[3], struct.unpack("=I", peer[28])[0], struct.unpack("=I", peer[4])[0]) == (b"right\0", 9, 1400)
    assert 1 not in peer
    assert "veth left peer right mtu 1400" in message.words


@pytest.mark.parametrize("text", ["10.0.0.1/24", "fd00::1/64", "0.0.0.0/0"])
def test_an_address_message_comes_back(text):
    """What add_address packs, parse_address reads."""
    interface = ip_interface(text)
    message = rtnetlink.add_address(5, interface)
    assert rtnetlink.parse_address(message.payload) == (interface, 5, False, "global")
    assert (message.payload[2] & rtnetlink.IFA_F_NODAD == rtnetlink.IFA_F_NODAD) is (interface.version == 6)


def test_a_tentative_address():
    """In the old flags' byte, and in the attribute that replaced it."""
    packed = ip_address("fe80::1").packed
    header = struct.pack("=BBBBI", socket.AF_INET6, 64, rtnetlink.IFA_F_TENTATIVE, 253, 2)
    assert rtnetlink.parse_address(header + rtnetlink.attribute(1, packed)) == (
        ip_interface("fe80::1/64"),
        2,
        True,
        "link",
    )
    header = struct.pack("=BBBBI", socket.AF_INET6, 64, 0, 253, 2)
    data = header + rtnetlink.attribute(1, packed) + rtnetlink.u32(8, rtnetlink.IFA_F_TENTATIVE | 0x80)
    assert rtnetlink.parse_address(data)[2] is True


def test_a_point_to_point_address():
    """IFA_LOCAL is the own one, IFA_ADDRESS the other's."""
    header = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 2)
    data = (
        header
        + rtnetlink.attribute(1, ip_address("10.0.0.2").packed)
        + rtnetlink.attribute(2, ip_address("10.0.0.1").packed)
    )
    assert rtnetlink.parse_address(data)[0] == ip_interface("10.0.0.1/32")


def test_a_route_message():
    """Destination, gateway and link, where there are any."""
    message = rtnetlink.add_route(ip_network("192.0.2.0/24"), ip_address("10.0.0.1"), 3)
    assert struct.unpack_from("=BBBBBBBB", message.payload)[:2] == (socket.AF_INET, 24)
    values = rtnetlink.attributes(message.payload[12:])
    assert values == {1: b"\xc0\0\2\0", 5: b"\n\0\0\1", 4: struct.pack("=I", 3)}
    default = rtnetlink.add_route(ip_network("::/0"), ip_address("fd00::1"), None)
    assert rtnetlink.attributes(default.payload[12:]).keys() == {5}


def test_link_flags():
    """Up and down change one bit and say so; a move changes none."""
    up, down = (struct.unpack_from("=BxHiII", rtnetlink.set_link(2, up=one).payload) for one in (True, False))
    assert (up[3], up[4]) == (rtnetlink.IFF_UP, rtnetlink.IFF_UP)
    assert (down[3], down[4]) == (0, rtnetlink.IFF_UP)
    moved = rtnetlink.set_link(2, netns=7)
    assert struct.unpack_from("=BxHiII", moved.payload)[4] == 0
    assert rtnetlink.attributes(moved.payload[16:]) == {28: struct.pack("=I", 7)}


class Wire:
    """A socket that answers what it is told to."""

    def __init__(self, answers):
        self.answers = answers
        self.sent = []

    def setsockopt(self, *_):
        """Takes everything."""

    def send(self, data):
        self.sent.append(data)

    def recv(self, *_):
        return self.answers.pop(0)


def answer(number, sequence, *, flags=0, message=None):
    """An NLMSG_ERROR as the kernel sends it with NETLINK_CAP_ACK."""
    payload = struct.pack("=iIHHII", -number, 16, 0, 0, sequence, 0)
    if message is not None:
        flags |= 0x200 | 0x100  # NLM_F_ACK_TLVS, NLM_F_CAPPED
        payload += rtnetlink.attribute(1, message.encode() + b"\0")
    return struct.pack("=IHHII", 16 + len(payload), rtnetlink.NLMSG_ERROR, flags, sequence, 0) + payload


@pytest.fixture
def wired(monkeypatch):
    """An rtnetlink socket with a wire instead of a kernel."""

    def make(*answers):
        sock = rtnetlink.Socket()
        sock.close()
        sock._socket = Wire(list(answers))
        return sock

    return make


def test_the_kernel_s_own_words(wired):
    """The extended acknowledgement is in the error, with the call and the errno's name."""
    sock = wired(answer(errno.EINVAL, 1, message="MTU greater than device maximum"))
    with pytest.raises(
        KernelError, match=r"RTM_DELLINK\(ifindex 5\) = -1 EINVAL .*the kernel says: MTU greater than"
    ) as caught:
        sock.do(rtnetlink.delete_link(5))
    assert (caught.value.errno, caught.value.message) == (errno.EINVAL, "MTU greater than device maximum")


def test_an_error_without_words(wired):
    """Has no words of the kernel's."""
    sock = wired(answer(errno.ENODEV, 1))
    with pytest.raises(KernelError, match="ENODEV") as caught:
        sock.do(rtnetlink.delete_link(5))
    assert caught.value.message is None


def test_a_batch_names_the_message_that_failed(wired):
    """The first of them; all acknowledgements are read, in one datagram or in several, notifications between them."""
    notification = struct.pack("=IHHII", 16, rtnetlink.RTM_NEWLINK, 0, 0, 0)
    sock = wired(answer(0, 1) + notification, notification, answer(errno.EEXIST, 2) + answer(errno.ENODEV, 3))
    with pytest.raises(KernelError, match=r"RTM_DELLINK\(ifindex 2\).*EEXIST"):
        sock.do(*[rtnetlink.delete_link(number) for number in (1, 2, 3)])
    assert len(sock._socket.sent) == 1
    assert sock._socket.answers == []


def test_an_acknowledgement_of_an_earlier_request(wired):
    """An interrupted request's late answer is not taken for this one's."""
    sock = wired(answer(errno.EPERM, 3), answer(0, 8))
    sock._sequence = 7
    sock.do(rtnetlink.delete_link(5))
    assert sock._socket.answers == []

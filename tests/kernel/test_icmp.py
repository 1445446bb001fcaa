"""ICMP echo, packed and read without a network."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_isolation._kernel import icmp


def test_the_checksum_of_rfc_1071():
    """Its own example."""
    assert icmp.checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


@pytest.mark.parametrize("data, expected", [(b"", 0xFFFF), (b"\0\0", 0xFFFF), (b"\xff\xff", 0), (b"\x01", 0xFEFF)])
def test_checksums_at_the_edges(data, expected):
    """Nothing, zeros, ones, an odd byte."""
    assert icmp.checksum(data) == expected


@settings(deadline=None)
@given(st.binary(max_size=200).map(lambda data: data + b"\0" * (len(data) % 2)))
def test_data_with_its_checksum_sums_to_nothing(data):
    """As a receiver checks it."""
    assert icmp.checksum(data + icmp.checksum(data).to_bytes(2, "big")) == 0


def test_an_echo_request():
    """Type 8 with a checksum; over IPv6 type 128, whose checksum is the kernel's."""
    packed = icmp.echo_request(4, 0x1234, 7, b"payload")
    assert struct.unpack_from("!BB", packed) == (8, 0)
    assert struct.unpack_from("!HH", packed, 4) == (0x1234, 7)
    assert icmp.checksum(packed) == 0
    assert icmp.echo_request(6, 1, 2, b"x") == b"\x80\0\0\0\0\1\0\2x"


def ipv4(payload, options=b""):
    """A packet as a raw IPv4 socket delivers it."""
    return bytes([0x40 | (5 + len(options) // 4)]) + bytes(19) + options + payload


@pytest.mark.parametrize("options", [b"", bytes(8), bytes(40)])
def test_a_reply(options):
    """Behind an IP header of any length; over IPv6 without one."""
    reply = struct.pack("!BBHHH", 0, 0, 0, 0x1234, 7) + b"payload"
    assert icmp.read(4, ipv4(reply, options)) == ("reply", 0x1234, 7)
    assert icmp.read(6, struct.pack("!BBHHH", 129, 0, 0, 0x1234, 7)) == ("reply", 0x1234, 7)


@pytest.mark.parametrize(
    "kind, code, words",
    [
        (3, 1, "Destination Host Unreachable"),
        (3, 0, "Destination Net Unreachable"),
        (11, 0, "Time To Live Exceeded"),
        (3, 77, "ICMP type 3 code 77"),
    ],
)
def test_an_error_quotes_our_request(kind, code, words):
    """And so says which one it is about."""
    quoted = ipv4(icmp.echo_request(4, 0x1234, 7, b""))
    assert icmp.read(4, ipv4(struct.pack("!BBHI", kind, code, 0, 0) + quoted)) == (words, 0x1234, 7)


def test_an_error_over_ipv6():
    """Behind a fixed header of 40 bytes."""
    quoted = bytes(40) + icmp.echo_request(6, 0x1234, 7, b"")
    assert icmp.read(6, struct.pack("!BBHI", 1, 3, 0, 0) + quoted) == ("Address Unreachable", 0x1234, 7)


@pytest.mark.parametrize("version", [4, 6])
def test_another_s_packet(version):
    """A request, a router's word, an error about something else: nothing for us."""
    wrap = ipv4 if version == 4 else lambda data: data
    other = wrap(struct.pack("!BBHHH", 17, 0, 0, 1, 1))
    for packet in (
        icmp.echo_request(version, 1, 2, b""),
        struct.pack("!BBHI", 9, 0, 0, 0),
        struct.pack("!BBHI", 3, 3, 0, 0) + other,
    ):
        assert icmp.read(version, wrap(packet)) is None


@settings(deadline=None)
@given(st.sampled_from([4, 6]), st.binary(max_size=120))
def test_any_bytes_at_all(version, data):
    """A network sends what it likes: no exception."""
    found = icmp.read(version, data)
    assert found is None or len(found) == 3


@pytest.mark.parametrize(
    "text, address, scope",
    [
        ("10.0.0.2", "10.0.0.2", None),
        ("fd00::2", "fd00::2", None),
        ("fe80::1%eth0", "fe80::1", "eth0"),
        ("fe80::1%2", "fe80::1", "2"),
    ],
)
def test_a_target(text, address, scope):
    """An address, with a link where it needs one."""
    assert icmp.parse_target(text) == (ip_address(address), scope)


@pytest.mark.parametrize("text", ["", "nowhere", "10.0.0.256", "10.0.0.1/24", "fe80::1%eth0%eth1 "])
def test_no_target(text):
    """A ValueError."""
    if text.startswith("fe80"):
        assert icmp.parse_target(text)[1] == "eth0%eth1 "
    else:
        with pytest.raises(ValueError, match="address"):
            icmp.parse_target(text)

"""The interpreter that a program names, on crafted headers and on the real programs of this machine."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_isolation._kernel import elf

LOADER = "/lib/ld-made-up.so.1"


def crafted(*, wide=True, little=True, loader=LOADER, before=1):
    """An ELF file of headers only: `before` segments of other kinds, then one that names the loader."""
    order, text = "<" if little else ">", loader.encode() + b"\0"
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if little else 2, 1]) + bytes(9)
    header_size, entry_size, count = (64, 56, before + 1) if wide else (52, 32, before + 1)
    offset = header_size + entry_size * count
    if wide:
        rest = struct.pack(
            order + "HHIQQQIHHHHHH", 2, 62, 1, 0, header_size, 0, 0, header_size, entry_size, count, 0, 0, 0
        )
        entry = lambda kind, at, size: struct.pack(order + "IIQQQQQQ", kind, 4, at, 0, 0, size, size, 1)  # noqa: E731
    else:
        rest = struct.pack(
            order + "HHIIIIIHHHHHH", 2, 3, 1, 0, header_size, 0, 0, header_size, entry_size, count, 0, 0, 0
        )
        entry = lambda kind, at, size: struct.pack(order + "IIIIIIII", kind, at, 0, 0, size, size, 4, 1)  # noqa: E731
    segments = [entry(1, 0, 0)] * before + [entry(3, offset, len(text))]
    return ident + rest + b"".join(segments) + text


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("before", [0, 1, 12])
def test_the_loader_of_a_crafted_header(wide, little, before):
    """32 and 64 bits, little and big end first, wherever the segment stands."""
    assert elf.interpreter(io.BytesIO(crafted(wide=wide, little=little, before=before))) == LOADER


def test_a_program_without_a_loader():
    """A static one has no such segment."""
    data = crafted(before=1)
    assert elf.interpreter(io.BytesIO(data.replace(struct.pack("<II", 3, 4), struct.pack("<II", 1, 4)))) is None


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", b"MZ" + bytes(100), b"\x7fELF" + bytes(100)])
def test_no_program(data):
    """None, whatever it is."""
    assert elf.interpreter(io.BytesIO(data)) is None


@pytest.mark.parametrize("length", range(0, 64 + 56 * 2 + 10, 7))
def test_a_file_cut_short(length):
    """No exception: None, or the part of the name that is there."""
    found = elf.interpreter(io.BytesIO(crafted()[:length]))
    assert found is None or LOADER.startswith(found)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_a_header_with_anything_behind_it(data):
    """A hostile file is no trap."""
    found = elf.interpreter(io.BytesIO(b"\x7fELF\x02\x01" + data))
    assert found is None or isinstance(found, str)


def test_the_real_thing():
    """This interpreter, by the word of readelf's source: the file itself."""
    path = Path(sys.executable).resolve()
    with path.open("rb") as file:
        found = elf.interpreter(file)
    assert found is None or Path(found).exists()
    with open("/bin/sh", "rb") as file:
        loader = elf.interpreter(file)
    assert loader.encode() + b"\0" in Path("/bin/sh").read_bytes()


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"#!/bin/sh\n", ("/bin/sh", "")),
        (b"#! /bin/sh -e\nrest", ("/bin/sh", "-e")),
        (b"#!/usr/bin/env python3 -I\n", ("/usr/bin/env", "python3 -I")),
        (b"#!/bin/sh", ("/bin/sh", "")),
        (b"#!\t/bin/sh\t-x  \n", ("/bin/sh", "-x")),
        (b"#!/b\xff\n", ("/b\udcff", "")),
        (b"# !/bin/sh\n", None),
        (b"", None),
        (b"\n#!/bin/sh\n", None),
    ],
)
def test_a_script_s_interpreter(data, expected):
    """As the kernel reads the first line: the program, and all the rest as one argument."""
    assert elf.script_interpreter(io.BytesIO(data)) == expected


@pytest.mark.parametrize("data", [b"#!\n", b"#!   \n"])
def test_a_script_that_names_nothing(data):
    """No interpreter at all: execve(2) fails with ENOEXEC."""
    found = elf.script_interpreter(io.BytesIO(data))
    assert found is None or not found[0]


def test_libraries_by_the_loader_s_own_word():
    """Just those that ldd(1) shows."""
    with open("/bin/sh", "rb") as file:
        loader = elf.interpreter(file)
    found = elf.libraries("/bin/sh", loader)
    shown = subprocess.check_output(["ldd", "/bin/sh"], text=True)
    assert found.missing == ()
    assert found.paths
    assert all(path in shown for path in found.paths)
    assert {line.split()[-2] for line in shown.splitlines() if "=>" in line} <= set(found.paths)

"""What a program needs to start: its loader and libraries, by the loader's own word, or its script interpreter."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from typing import BinaryIO

_PT_INTERP = 3


def interpreter(file: BinaryIO) -> str | None:
    """The loader that an ELF file names (PT_INTERP); None for anything else, static programs included. elf(5)"""
    file.seek(0)
    head = file.read(64)
    if head[:4] != b"\x7fELF" or len(head) < (64 if head[4:5] == b"\2" else 52):
        return None
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    start = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    for number in range(count):
        file.seek(start + number * size)
        entry = file.read(size)
        if len(entry) < size or struct.unpack_from(order + "I", entry)[0] != _PT_INTERP:
            continue
        offset = struct.unpack_from(order + ("Q" if wide else "I"), entry, 8 if wide else 4)[0]
        length = struct.unpack_from(order + ("Q" if wide else "I"), entry, 32 if wide else 16)[0]
        file.seek(offset)
        return file.read(length).rstrip(b"\0").decode(errors="surrogateescape")
    return None


def script_interpreter(file: BinaryIO) -> tuple[str, str] | None:
    """The interpreter of a `#!` script, and its argument or "". execve(2)"""
    file.seek(0)
    line = file.read(256).partition(b"\n")[0]
    if not line.startswith(b"#!"):
        return None
    words = line[2:].strip(b" \t").decode(errors="surrogateescape")
    program, *argument = re.split(r"[ \t]+", words, maxsplit=1)
    return program, "".join(argument)


@dataclass(frozen=True, slots=True)
class Libraries:
    """What the loader would load.

    Attributes:
        paths: the libraries, as the loader found them.
        missing: names it did not find.
        by_cache: some are found only with the help of /etc/ld.so.cache.
    """

    paths: tuple[str, ...]
    missing: tuple[str, ...]
    by_cache: bool


def libraries(program: str, loader: str) -> Libraries:
    """Ask the loader, in its tracing mode, which runs nothing of the program. ld.so(8)"""
    paths, missing = _trace(program, [loader])
    bare, bare_missing = _trace(program, [loader, "--inhibit-cache"]) if "ld-linux" in loader else (paths, missing)
    return Libraries(tuple(paths), tuple(missing), by_cache=(bare, bare_missing) != (paths, missing))


def _trace(program: str, loader: list[str]) -> tuple[list[str], list[str]]:
    done = subprocess.run(
        [*loader, "--list", program], capture_output=True, text=True, errors="surrogateescape", check=False, env={}
    )
    paths = re.findall(r"^\t(?:.* => )?(/\S.*?)(?: \(0x[0-9a-f]+\))?$", done.stdout, re.MULTILINE)
    missing = re.findall(r"^\t(.*) => not found$", done.stdout, re.MULTILINE)
    missing += re.findall(r"error while loading shared libraries: (.*?): cannot open", done.stderr)
    return paths, missing

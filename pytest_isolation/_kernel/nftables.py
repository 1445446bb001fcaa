"""libnftables, loaded when first used, and what it and nft(8) print: JSON, and their own language. libnftables(3)

The library works in the network namespace of the calling thread. A context, and with it its netlink socket, lives for
one command: an open socket would keep the namespace alive.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from pytest_isolation._kernel.netfilter import Chain, Rule, Table

# nftables/libnftables.h
NFT_CTX_DEFAULT = 0
NFT_CTX_OUTPUT_STATELESS = 1 << 2
NFT_CTX_OUTPUT_HANDLE = 1 << 3
NFT_CTX_OUTPUT_JSON = 1 << 4
#: nft(8)'s option for each.
OPTIONS = {NFT_CTX_OUTPUT_STATELESS: "-s", NFT_CTX_OUTPUT_HANDLE: "-a", NFT_CTX_OUTPUT_JSON: "-j"}


class Answer(NamedTuple):
    """What became of a command: was it done, what was printed, what was complained of."""

    done: bool
    output: str
    error: str


@functools.cache
def library() -> ctypes.CDLL | None:
    """libnftables, or None where it is not installed."""
    try:
        lib = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    lib.nft_ctx_free.restype = None
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    lib.nft_ctx_output_set_flags.restype = None
    lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    for name in ("nft_run_cmd_from_buffer", "nft_run_cmd_from_filename"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(lib, name).restype = ctypes.c_char_p
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    return lib


def run(text: str, flags: int = 0) -> Answer:
    """Run commands of nft(8), all of them in one transaction, by the library.

    Of several lines in a buffer the library shows the first with every error, whichever it is in, and of a file the
    right one; but a file takes twice as long. So what was refused is tried again, as a file.
    """
    answer = _run(text, flags)
    if not answer.done and "\n" in text.strip():
        with open(os.memfd_create("ruleset"), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            path = f"/proc/thread-self/fd/{file.fileno()}"
            answer = _run(path, flags, "filename")
        answer = answer._replace(error=answer.error.replace(path, "ruleset"))
    return answer


def _run(text: str, flags: int, source: str = "buffer") -> Answer:
    lib = library()
    if lib is None:
        raise OSError("libnftables is not there")  # its callers ask first
    context = lib.nft_ctx_new(NFT_CTX_DEFAULT)
    try:
        lib.nft_ctx_buffer_output(context)
        lib.nft_ctx_buffer_error(context)
        if flags:
            lib.nft_ctx_output_set_flags(context, flags)
        status = getattr(lib, f"nft_run_cmd_from_{source}")(context, text.encode())
        output = lib.nft_ctx_get_output_buffer(context).decode(errors="replace")
        error = lib.nft_ctx_get_error_buffer(context).decode(errors="replace")
    finally:
        lib.nft_ctx_free(context)
    return Answer(not status, output, error)


# -- what it prints


@dataclass(frozen=True, slots=True)
class NftSet:
    """A named set of nftables, or a map.

    Attributes:
        family: of its table.
        table: its table's name.
        name: its own.
        type: of its elements: `ipv4_addr`, or `ipv4_addr . inet_service`; of a map with what it maps to,
            `inet_service : verdict`.
        flags: `interval`, `timeout`, `constant`, ...
        elements: in nft's own words: `10.0.0.1`, `10.0.0.0/8`, `1.1.1.1-1.1.1.9`, `10.0.0.1 . 80`, `80 : accept`.
    """

    family: str
    table: str
    name: str
    type: str
    flags: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NftCounter:
    """A named counter of nftables, which any number of rules may share."""

    family: str
    table: str
    name: str
    packets: int
    bytes: int


class Listing(NamedTuple):
    """A whole ruleset."""

    tables: list[Table]
    chains: list[Chain]
    rules: list[Rule]
    sets: list[NftSet]
    counters: list[NftCounter]


def parse_listing(listed: str, texts: str) -> Listing:
    """A ruleset from two listings of it: `nft -j`, and `nft -s -a`, which has each rule's text by its handle."""
    words = rule_texts(texts)
    found = Listing([], [], [], [], [])
    for entry in json.loads(listed)["nftables"]:
        ((kind, one),) = entry.items()
        if kind == "table":
            found.tables.append(Table(one["family"], one["name"]))
        elif kind == "chain":
            found.chains.append(_chain(one))
        elif kind == "rule":
            place = (one["family"], one["table"], one["handle"])
            if place in words:  # else it went between the two listings
                packets, size = _counted(one["expr"])
                family, table, handle = place
                found.rules.append(Rule(family, table, one["chain"], words[place], packets, size, handle))
        elif kind in {"set", "map"}:
            found.sets.append(_set(one))
        elif kind == "counter":
            numbers = (one["packets"], one["bytes"])
            found.counters.append(NftCounter(one["family"], one["table"], one["name"], *numbers))
    return found


def rule_texts(listed: str) -> dict[tuple[str, str, int], str]:
    """Of `nft -a list ruleset`: each rule's text, by family, table, and handle."""
    found: dict[tuple[str, str, int], str] = {}
    family = table = ""
    in_chain = False
    for line in listed.splitlines():
        if match := re.match(r"table (\S+) (\S+) \{", line):
            family, table = match.groups()
        elif match := re.match(r"\t(\S+) .*\{", line):
            in_chain = match[1] == "chain"
        elif in_chain and (match := re.match(r"\t\t(.*) # handle (\d+)$", line)):
            found[family, table, int(match[2])] = match[1]
    return found


def split_tables(listed: str) -> dict[Table, str]:
    """Of `nft list ruleset`: the text of each table."""
    found: dict[Table, str] = {}
    here: Table | None = None
    for line in listed.splitlines(keepends=True):
        if match := re.match(r"table (\S+) (\S+) \{", line):
            here = Table(*match.groups())
            found[here] = ""
        if here is not None:
            found[here] += line
    return found


def _chain(one: dict[str, Any]) -> Chain:
    base = (one.get("type"), one.get("hook"), one.get("prio"), one.get("policy"))
    return Chain(one["family"], one["table"], one["name"], *base)


def _counted(expressions: list[dict[str, Any]]) -> tuple[int | None, int | None]:
    for expression in expressions:
        counter = expression.get("counter")
        if isinstance(counter, dict):  # a named one stands elsewhere
            return counter["packets"], counter["bytes"]
    return None, None


def _set(one: dict[str, Any]) -> NftSet:
    kind = _joined(one["type"])
    if "map" in one:
        kind += f" : {_joined(one['map'])}"
    elements = one.get("elem", ())
    flags = one.get("flags", ())
    return NftSet(
        one["family"],
        one["table"],
        one["name"],
        kind,
        (flags,) if isinstance(flags, str) else tuple(flags),
        tuple(_element(value) for value in elements),
    )


def _joined(kind: str | list[str]) -> str:
    return kind if isinstance(kind, str) else " . ".join(kind)


#: How nft(8) joins what JSON has as a list.
_BETWEEN = {"range": "-", "concat": " . "}


def _element(value: Any) -> str:
    """An element as nft(8) writes it; what stands beside its value (counter, timeout, comment) is left out."""
    if isinstance(value, list):  # of a map
        return " : ".join(_element(part) for part in value)
    if not isinstance(value, dict):
        return str(value)
    ((kind, inner),) = value.items()
    if kind == "elem":
        return _element(inner["val"])
    if kind == "prefix":
        return f"{_element(inner['addr'])}/{inner['len']}"
    if kind in _BETWEEN:
        return _BETWEEN[kind].join(_element(part) for part in inner)
    target = f" {inner['target']}" if isinstance(inner, dict) and "target" in inner else ""
    return f"{kind}{target}"  # a verdict

"""Facts and calls, no policy: constants, system calls, parsers, netlink messages."""

"""A session that never asks for isolation pays nothing for the plugin."""

LOOK = """
    import json
    import os
    import sys
    import threading
    from pathlib import Path

    def look():
        return {
            "modules": sorted(sys.modules),
            "threads": len(os.listdir("/proc/self/task")),
            "children": [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()],
            "cgroup": Path("/proc/self/cgroup").read_text(),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    def pytest_sessionfinish(session):
        Path("during.json").write_text(json.dumps(look()))
"""


def test_an_unused_plugin_costs_nothing(pytester):
    """Neither ctypes, pyroute2, filelock nor a module of ours below the hooks; no thread, process or cgroup."""
    import json

    pytester.makeconftest(LOOK)
    pytester.makepyfile("def test_nothing(tmp_path, capsys): pass")
    seen = {}
    for name in ("pytest_isolation", "no:pytest_isolation"):
        pytester.runpytest_subprocess("-p", name).assert_outcomes(passed=1)
        seen[name] = json.loads((pytester.path / "during.json").read_text())
    with_it, without = seen["pytest_isolation"], seen["no:pytest_isolation"]
    added = set(with_it.pop("modules")) - set(without.pop("modules"))
    assert not [name for name in added if name.partition(".")[0] in {"ctypes", "_ctypes", "pyroute2", "filelock"}]
    assert {name for name in added if not name.startswith("pytest_isolation")} == set()
    assert not [name for name in added if name.startswith(("pytest_isolation.objects", "pytest_isolation._state"))]
    assert not [name for name in added if name.startswith(("pytest_isolation._kernel", "pytest_isolation.errors"))]
    assert with_it == without


def test_collecting_tests_that_ask_for_it_costs_nothing_either(pytester):
    """`--collect-only` makes nothing: only a fixture that runs does."""
    import json

    pytester.makeconftest(LOOK)
    pytester.makepyfile("def test_it(netns, veth_pair, chroot_root): pass")
    pytester.runpytest_subprocess("--collect-only")
    during = json.loads((pytester.path / "during.json").read_text())
    assert not [name for name in during["modules"] if name.startswith(("pytest_isolation.objects", "pyroute2"))]
    assert during["children"] == [""]

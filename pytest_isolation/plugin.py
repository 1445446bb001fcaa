"""What pytest loads: hooks and fixtures, re-exported from where they are written."""

from __future__ import annotations

from pytest_isolation._plugin.hooks import (
    pytest_addoption,
    pytest_configure,
    pytest_fixture_setup,
    pytest_report_header,
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_unconfigure,
)
from pytest_isolation.fixtures import (
    cgroup_namespace,
    chroot_root,
    class_isolation,
    ipc_namespace,
    isolation,
    module_isolation,
    mount_namespace,
    netns,
    package_isolation,
    pid_namespace,
    session_isolation,
    time_namespace,
    user_namespace,
    uts_namespace,
    veth_pair,
)

__all__ = [
    "cgroup_namespace",
    "chroot_root",
    "class_isolation",
    "ipc_namespace",
    "isolation",
    "module_isolation",
    "mount_namespace",
    "netns",
    "package_isolation",
    "pid_namespace",
    "pytest_addoption",
    "pytest_configure",
    "pytest_fixture_setup",
    "pytest_report_header",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
    "pytest_unconfigure",
    "session_isolation",
    "time_namespace",
    "user_namespace",
    "uts_namespace",
    "veth_pair",
]

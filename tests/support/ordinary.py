"""An ordinary user: commands that run without any right, but for KVM itself, in a network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["USER", "ordinary_user"]

USER = 54321
"""Nobody has this number."""

# The interpreter may be where only root can go; in the command's own mount namespace everybody can. `$1` is its
# folder, `$2` the group that may use KVM.
_PREPARE = """
base=$1 group=$2; shift 2
if ! setpriv --reuid {user} --regid {user} --clear-groups test -x "$base/bin"; then
    top=/$(echo "$base" | cut -d/ -f2)
    mount -t tmpfs -o mode=755 tmpfs /mnt && mkdir /mnt/base && mount --bind "$base" /mnt/base &&
    mount -t tmpfs -o mode=755 tmpfs "$top" && mkdir -p "$base" && mount --bind /mnt/base "$base" || exit 99
fi
exec setpriv --reuid {user} --regid {user} --groups "$group" --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"""


def ordinary_user(namespace: str, directory: Path) -> Sequence[str]:
    """What to put before a command, that becomes it. `directory` is the user's from now on."""
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed: apt-get install util-linux")
    device = os.stat("/dev/kvm")
    if device.st_mode & 0o060 != 0o060:
        pytest.skip("/dev/kvm is for no group: 'sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm'")
    os.chown(directory, USER, USER)
    for parent in directory.parents:
        if not parent.stat().st_mode & 0o001:
            pytest.skip(f"{parent} cannot be entered by others")
    text = _PREPARE.format(user=USER)
    under = ["ip", "netns", "exec", namespace, "sh", "-c", text, "sh", sys.base_prefix, str(device.st_gid)]
    probe = subprocess.run(
        [*under, sys.executable, "-c", "import tvmm.cli, os; os.open('/dev/kvm', os.O_RDWR)"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"an ordinary user cannot run this: {probe.stderr.strip().splitlines()[-1:]}")
    return under

"""`tvmm` whose machines have no userfaultfd, for bench.live_snapshot: python -m bench.by_log run ...

It is what a user has who is not root, whoever runs this.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from tvmm.cli import main
from tvmm.errors import HostError
from tvmm.kvm.live import Frozen


def refuse(self: Frozen) -> NoReturn:
    """In place of `Frozen.open`."""
    raise HostError("a live snapshot needs the right to handle page faults of the kernel")


if __name__ == "__main__":
    Frozen.open = refuse  # type: ignore[method-assign]
    sys.exit(main())

"""NBD servers that say anything, one after the other.

    python -m fuzz.nbd_replies [--runs 5000] [--seed 1]

Replies that keep the rules, replies that break them, damaged ones and noise, in pieces of any size, to the requests of
a disk. What the driver gets is what a twin in plain Python makes of the same bytes, a connection is lost if and only if
the twin gives it up, nothing beside the buffers is written, and the next server has what is left.
"""

from __future__ import annotations

from fuzz.common import hostile_runs
from tests.support.nbd_hostile import hostile_run

if __name__ == "__main__":
    hostile_runs(__doc__ or "", hostile_run)

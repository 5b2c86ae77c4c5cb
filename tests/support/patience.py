"""How long tests let things take that are not what they are about."""

from __future__ import annotations

from tvmm.migration.status import MigrationParameters
from tvmm.testing import LONGEST_PAUSE_MS

__all__ = ["PATIENT"]

PATIENT = MigrationParameters(LONGEST_PAUSE_MS)
"""A migration whose pause may be as long as a busy host needs; it is as short as it can be all the same."""

"""What the control socket asks of the migration of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.migration.status import MigrationParameters, MigrationStatus

__all__ = ["MigrationTarget"]


class MigrationTarget(Protocol):
    """The migration of a machine, as control clients see it.

    The machine announces each change of state by the event MIGRATION, with `migration_info.event_data`, and each pass
    over RAM by MIGRATION_PASS, ``{"pass": n}``. What clients rely on, to be never in doubt about how it ended:

    - ``setup`` is announced before `start_migration` returns, and what was announced before it is about an earlier one;
    - each migration that was begun ends with one event of a state that is in `status.ENDED`, announced when
      `migration_status` has the same state and all its figures, and before the machine ends for it.
    """

    def migration_status(self) -> MigrationStatus:
        """How the migration goes, out of the machine or into it, or how the last one ended."""

    def migration_parameters(self) -> MigrationParameters:
        """How the next migration out of the machine goes."""

    def set_migration_parameters(self, changes: Mapping[str, Any]) -> None:
        """Give fields of `migration_parameters` other values, checked together by the caller. One under way takes over
        what it can (limits of bandwidth, pause and time)."""

    async def start_migration(self, uri: str, parameters: MigrationParameters) -> None:
        """Begin to move the guest to `uri` (``tcp:HOST:PORT``, ``unix:PATH``) and return, before anything can have
        been refused over there. `parameters` are checked. Raises `UserError` if it cannot begin: one is under way, the
        guest has moved, the machine waits for a guest."""

    def cancel_migration(self) -> None:
        """Begin to give up the migration out of the machine, if it can still be given up. The guest goes on here.
        Raises `UserError` where it runs at the destination already and gets its memory from here.
        """

    def start_postcopy(self) -> None:
        """Let the guest of a migration go before its memory, at the end of its first pass. Raises `UserError`: none is
        under way, or it was begun without the leave to do so.
        """

    def pause_migration(self) -> None:
        """Cut the connections of a post-copy; they stay cut until `recover_migration`. Raises `UserError` if there is
        none.
        """

    async def recover_migration(self, uri: str) -> None:
        """Go on with a post-copy that is paused. At the source: connect to the destination, at `uri` if that is not ''.
        At the destination, which waits for its source anyway: listen at `uri` too. Raises `UserError`.
        """

    async def listen_for_migration(self, uri: str) -> None:
        """Return when the machine, started with ``--incoming defer``, listens at `uri`. Raises `UserError`: it was
        not started so, it listens already, or it cannot listen there."""

"""Commands of the control socket about snapshot files; `tvmm.control.verbs` has the table.

QEMU has `snapshot-save`, which wants a disk for it, and `migrate` to a file; these are tvmm's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.control.qmp import Argument, CommandFailed
from tvmm.control.save_info import save_info
from tvmm.snapshot.status import MAX_KEY_BYTES, SaveParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.target import ControlTarget, Json

__all__ = ["SAVE", "query_save", "save", "save_cancel"]

SAVE = (
    Argument("path", "string"),
    Argument("force", "boolean", required=False),
    Argument("stop", "boolean", required=False),
    Argument("live", "boolean", required=False),
    Argument("passphrase", "string", required=False),
    Argument("key", "string", required=False),
)
"""`path` is one of the machine's process. `force` replaces a file that is no snapshot; `stop`: the machine ends when
the file is safe; `live`: the guest runs meanwhile; `passphrase`, or `key` in hexadecimal digits, encrypts it."""

MAX_PATH = 4096


async def save(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when a save is under way, and has been announced by the event."""
    path = arguments["path"]
    if not _is_path(path):
        raise CommandFailed("GenericError", "argument 'path' is no path")
    for name in ("passphrase", "key"):
        # Who gives one means that the file is to be encrypted.
        if arguments.get(name) == "":
            raise CommandFailed("GenericError", f"argument {name!r} is empty")
    try:
        key = bytes.fromhex(arguments.get("key", "")[: 2 * MAX_KEY_BYTES + 2])
    except ValueError:
        raise CommandFailed("GenericError", "argument 'key' is not in hexadecimal digits") from None
    parameters = SaveParameters(
        force=arguments.get("force", False),
        stop=arguments.get("stop", False),
        live=arguments.get("live", False),
        passphrase=arguments.get("passphrase", ""),
        key=key,
    )
    await target.start_save(path, parameters.check())
    return {}


def _is_path(path: str) -> bool:
    """As a system call takes it: bytes that are no UTF-8 are there as halves of surrogate pairs."""
    try:
        return 0 < len(path.encode(errors="surrogateescape")) <= MAX_PATH and "\0" not in path
    except UnicodeEncodeError:
        return False


async def save_cancel(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Begin to give the save up, if there is one; the event tells how it ended."""
    target.cancel_save()
    return {}


async def query_save(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """How the save goes, or how the last one ended."""
    return save_info(target.save_status())

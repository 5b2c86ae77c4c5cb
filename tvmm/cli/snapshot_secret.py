"""What encrypts a snapshot: a passphrase from a file or from the terminal, or the bytes of a key file."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tvmm.errors import UserError
from tvmm.snapshot.status import MAX_KEY_BYTES, MAX_PASSPHRASE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvmm.cli.parser import Parser
    from tvmm.snapshot.format import KeySource
    from tvmm.snapshot.sealing import Secret

__all__ = ["add_secret_options", "answer", "new_secret"]

MIN_KEY_BYTES = 16


def add_secret_options(parser: Parser, *, new: bool) -> None:
    """``--encrypt`` for a `new` file, and where its secret is."""
    group = parser.add_argument_group("encryption")
    if new:
        group.add_argument("--encrypt", action="store_true", help="encrypt the file with a passphrase (AES-256-GCM)")
    group.add_argument(
        "--passphrase-file", metavar="PATH", help="a file whose first line is the passphrase (default: ask for it)"
    )
    group.add_argument("--key-file", metavar="PATH", help="a file with random bytes, in place of a passphrase")


def new_secret(options: Mapping[str, Any]) -> dict[str, str]:
    """The members of `x-save` that encrypt the file, if anything is to. Raises `UserError`."""
    if "key_file" in options:
        return {"key": _key(options["key_file"]).hex()}
    if "passphrase_file" in options:
        return {"passphrase": _first_line(options["passphrase_file"])}
    if not options.get("encrypt"):
        return {}
    passphrase = _ask("passphrase for the snapshot: ")
    if passphrase != _ask("once more: "):
        raise UserError("the two passphrases are not the same")
    return {"passphrase": passphrase}


def answer(options: Mapping[str, Any]) -> Callable[[KeySource], Secret]:
    """What gives the secret of an encrypted file, once it is known to be one."""

    def give(source: KeySource) -> Secret:
        from tvmm.snapshot.sealing import Secret

        if "key_file" in options:
            return Secret(_key(options["key_file"]), from_file=True)
        if "passphrase_file" in options:
            return Secret(_first_line(options["passphrase_file"]).encode())
        if source.kind == 2:
            raise UserError("the snapshot is encrypted with a key file", "name it with --key-file")
        return Secret(_ask("passphrase of the snapshot: ").encode())

    return give


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise UserError("the snapshot is encrypted, and there is no terminal to ask at", "give --passphrase-file")
    import getpass

    try:
        return _checked(getpass.getpass(f"tvmm: {prompt}"))
    except EOFError:
        raise UserError("no passphrase was given") from None


def _checked(passphrase: str) -> str:
    if not 0 < len(passphrase) <= MAX_PASSPHRASE:
        raise UserError(f"a passphrase has 1 to {MAX_PASSPHRASE} characters")
    return passphrase


def _first_line(path: str) -> str:
    try:
        return _checked(_read(path).decode().split("\n")[0].rstrip("\r"))
    except UnicodeDecodeError:
        raise UserError(f"passphrase file {path} is not UTF-8 text") from None


def _key(path: str) -> bytes:
    data = _read(path)
    if not MIN_KEY_BYTES <= len(data) <= MAX_KEY_BYTES:
        raise UserError(
            f"key file {path} has {len(data)} bytes, {MIN_KEY_BYTES} to {MAX_KEY_BYTES} are possible",
            f"make one with 'head -c 32 /dev/urandom > {path}'",
        )
    return data


def _read(path: str) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None

"""What encrypts a snapshot: a passphrase from a file or from the terminal, or the bytes of a key file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tvmm.errors import UserError
from tvmm.snapshot.status import MAX_KEY_BYTES, MAX_PASSPHRASE, MIN_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvmm.cli.parser import Parser
    from tvmm.snapshot.format import KeySource
    from tvmm.snapshot.sealing import Secret

__all__ = ["add_secret_options", "answer", "new_secret"]

_MAX_READ = max(MAX_KEY_BYTES, 4 * MAX_PASSPHRASE) + 1
"""Of UTF-8, a character has four bytes at most."""


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
    _check_one(options)
    if "key_file" in options:
        return {"key": _key(options["key_file"]).hex()}
    if "passphrase_file" in options:
        return {"passphrase": _first_line(options["passphrase_file"])}
    if not options.get("encrypt"):
        return {}
    passphrase = _ask("passphrase for the snapshot: ", "a passphrase is wanted")
    if passphrase != _ask("once more: ", "a passphrase is wanted"):
        raise UserError("the two passphrases are not the same")
    return {"passphrase": passphrase}


def answer(options: Mapping[str, Any]) -> Callable[[KeySource], Secret]:
    """What gives the secret of an encrypted file, once it is known to be one. Raises `UserError`."""
    _check_one(options)

    def give(source: KeySource) -> Secret:
        from tvmm.snapshot.sealing import Secret

        if "key_file" in options:
            return Secret(_key(options["key_file"]), from_file=True)
        if "passphrase_file" in options:
            return Secret(_first_line(options["passphrase_file"]).encode())
        if source.kind == 2:
            raise UserError("the snapshot is encrypted with a key file", "name it with --key-file")
        return Secret(_ask("passphrase of the snapshot: ", "the snapshot is encrypted").encode())

    return give


def _check_one(options: Mapping[str, Any]) -> None:
    if "key_file" in options and "passphrase_file" in options:
        raise UserError("a passphrase and a key file are given", "give one of them")


def _ask(prompt: str, why: str) -> str:
    if not sys.stdin.isatty():
        raise UserError(f"{why}, and there is no terminal to ask at", "give --passphrase-file or --key-file")
    import getpass

    try:
        return _checked(getpass.getpass(f"tvmm: {prompt}"), "what was typed")
    except EOFError:
        raise UserError("no passphrase was given") from None
    except UnicodeDecodeError:
        raise UserError("what was typed is not UTF-8 text") from None


def _checked(passphrase: str, whose: str) -> str:
    if not 0 < len(passphrase) <= MAX_PASSPHRASE:
        raise UserError(f"{whose} has {len(passphrase)} characters, 1 to {MAX_PASSPHRASE} are possible")
    try:
        passphrase.encode()
    except UnicodeEncodeError:
        raise UserError(f"{whose} is not UTF-8 text") from None
    return passphrase


def _first_line(path: str) -> str:
    line = _read(path).split(b"\n")[0].rstrip(b"\r")
    return _checked(line.decode(errors="surrogateescape"), f"the first line of passphrase file {path}")


def _key(path: str) -> bytes:
    data = _read(path)
    if not MIN_KEY_BYTES <= len(data) <= MAX_KEY_BYTES:
        size = f"{len(data)}" if len(data) <= MAX_KEY_BYTES else f"more than {MAX_KEY_BYTES}"
        raise UserError(
            # Not with its name: it may be the key of something else, or a passphrase.
            f"key file {path} has {size} bytes, {MIN_KEY_BYTES} to {MAX_KEY_BYTES} are possible",
            "'head -c 32 /dev/urandom > NEW' makes one; a passphrase is for --passphrase-file",
        )
    return data


def _read(path: str) -> bytes:
    try:
        # It may be a pipe, as of <(pass show web): then it waits for who writes to it.
        with open(path, "rb") as file:
            return file.read(_MAX_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None

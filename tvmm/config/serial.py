"""``--serial stdio|pty|none|file=PATH|unix=PATH|tcp=HOST:PORT[,opt=val]``: what COM1 is connected to."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.names import UNIX_PATH_LIMIT
from tvmm.config.options import join_options, nearest, parse_bool, parse_options, unknown_name
from tvmm.config.units import parse_integer
from tvmm.errors import ConfigError

__all__ = ["DEFAULT_ESCAPE", "SERIAL_KINDS", "SerialConfig"]

SERIAL_KINDS = ("stdio", "pty", "none", "file", "unix", "tcp")
_FORMS = "write stdio, pty, none, file=PATH, unix=PATH or tcp=HOST:PORT"

_OPTIONS: dict[str, tuple[str, ...]] = {"stdio": ("escape",), "pty": ("link",), "file": ("append",)}
"""What each kind takes besides its target; those left out take nothing."""
_PLAIN_KINDS = ("stdio", "pty", "none")
_TARGET_KINDS = ("file", "unix", "tcp")

DEFAULT_ESCAPE = "\x01"
"""Control-A, as in QEMU and in screen."""


class SerialConfig(NamedTuple):
    """Where the bytes of COM1 come from and go to.

    `path` belongs to file and unix, `host` and `port` (0: any free one) to tcp; unix and tcp listen.
    `append` keeps what is in the file. `link` is a symbolic link to make to the terminal of a pty. `escape`
    is the control character that begins a command to tvmm on stdio, '' for none.
    """

    kind: str = "none"
    path: str = ""
    host: str = ""
    port: int = 0
    append: bool = False
    link: str = ""
    escape: str = DEFAULT_ESCAPE

    @classmethod
    def parse(cls, text: str) -> SerialConfig:
        """From the value of ``--serial``. Raises `ConfigError`."""
        if not text:
            raise ConfigError("serial is empty", _FORMS)
        kind, target, extras = _split(text)
        config = cls(kind=kind)
        if kind == "tcp":
            host, port = _address(target)
            config = config._replace(host=host, port=port)
        else:
            config = config._replace(path=target)
        for key, value in extras.items():
            if key == "append":
                config = config._replace(append=parse_bool(value, "serial option append"))
            elif key == "link":
                config = config._replace(link=value)
            else:
                config = config._replace(escape=_escape_character(value))
        return config.check()

    def check(self) -> SerialConfig:
        """The same record, if its fields agree with one another; raises `ConfigError` otherwise."""
        if self.kind not in SERIAL_KINDS:
            raise unknown_name("serial kind", self.kind, SERIAL_KINDS)
        if self.kind in ("file", "unix") and not self.path:
            raise ConfigError(f"serial {self.kind} has no path", f"write {self.kind}=PATH")
        if self.kind == "unix" and len(self.path.encode("utf-8", "surrogateescape")) > UNIX_PATH_LIMIT:
            raise ConfigError(
                f"serial path {self.path!r} is too long for a socket",
                f"{UNIX_PATH_LIMIT} bytes are the limit",
            )
        if self.kind == "tcp":
            if not self.host:
                raise ConfigError(
                    "serial tcp has no host", "write tcp=127.0.0.1:PORT, or tcp=0.0.0.0:PORT for everyone"
                )
            parse_integer(self.port, "serial tcp port", 0, 65535)
        if "\0" in self.path + self.host + self.link:
            raise ConfigError("serial has a NUL character in a name")
        if len(self.escape) > 1 or self.escape >= " ":
            raise ConfigError(
                f"serial escape {self.escape!r} is not a control character", "write ctrl-a, ctrl-] or none"
            )
        return self

    def spelling(self) -> str:
        """The command line's spelling of this record, without options that have their default."""
        values: dict[str, str] = {}
        if self.kind in _PLAIN_KINDS:
            values["kind"] = self.kind
        elif self.kind == "tcp":
            host = f"[{self.host}]" if ":" in self.host else self.host
            values["tcp"] = f"{host}:{self.port}"
        else:
            values[self.kind] = self.path
        if self.append:
            values["append"] = "on"
        if self.link:
            values["link"] = self.link
        if self.escape != DEFAULT_ESCAPE:
            values["escape"] = f"ctrl-{chr(ord(self.escape) | 0x40).lower()}" if self.escape else "none"
        return join_options(values, first="kind")


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """(kind, target, other options) of a whole value, each option being one that the kind takes."""
    head, _, _ = text.partition(",")
    word, equals, _ = head.partition("=")
    if word not in SERIAL_KINDS:
        guess = nearest(word, SERIAL_KINDS)
        raise ConfigError(f"unknown serial kind {word!r}", f"did you mean {guess!r}? ({_FORMS})" if guess else _FORMS)
    if word in _TARGET_KINDS and not equals:
        raise ConfigError(f"serial {word} has no target", _FORMS)
    if word in _PLAIN_KINDS and equals:
        raise ConfigError(f"serial {word} takes no target", _FORMS)
    options = _OPTIONS.get(word, ())
    group = f"serial {word}"
    if word in _TARGET_KINDS:
        values = parse_options(text, group, (word, *options))
        return word, values.pop(word), values
    values = parse_options(text, group, ("kind", *options), first="kind")
    del values["kind"]
    return word, "", values


def _address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 address goes into brackets."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ConfigError(f"serial tcp {text!r} has no port", "write tcp=HOST:PORT, e.g. tcp=127.0.0.1:4555")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"serial tcp {text!r} is ambiguous", "put an IPv6 address into brackets: tcp=[::1]:4555")
    return host, parse_integer(port, "serial tcp port", 0, 65535)


def _escape_character(text: str) -> str:
    """The control character of ``ctrl-a`` or ``^a``, '' for ``none``."""
    word = text.lower()
    if word in ("none", "off", ""):
        return ""
    letter = word.removeprefix("ctrl-") if word.startswith("ctrl-") else word.removeprefix("^")
    if letter != word and len(letter) == 1 and ("a" <= letter <= "z" or letter in "]\\^_"):
        return chr(ord(letter) & 0x1F)
    raise ConfigError(f"serial escape {text!r} is not a control character", "write ctrl-a, ctrl-] or none")

"""``--vnc HOST:PORT|unix:PATH|:N|none[,key=val]``: where viewers find the guest's screen, and who may see it.

What holds if little is said: on a loopback address or a unix socket everybody may come in, who is on this host and
reaches it. Anywhere else there is a password, made up and printed if none is given, and encryption for viewers that
can do it. Less than that has to be asked for by name (``insecure=on``).
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.incoming import HOST_LIMIT
from tvmm.config.names import UNIX_PATH_LIMIT
from tvmm.config.options import join_options, split_commas
from tvmm.config.properties import Codec, Property, check_values, parse_values, spelled, with_defaults
from tvmm.config.units import parse_integer
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from typing import Literal

__all__ = ["FIRST_PORT", "MAX_VIEWERS", "VNC_PROPERTIES", "VncAddress", "VncConfig"]

FIRST_PORT = 5900
"""The port of display 0 (RFC 6143, 2)."""
DISPLAY_LIMIT = 99
"""Numbers up to here are displays and not ports where both make sense: nobody listens for viewers below port 100."""
PORTS_LIMIT = 1000
"""Ports that are tried one after the other."""
MAX_VIEWERS = 256
MIN_SIZE, MAX_SIZE = (320, 200), (2560, 1600)
"""Pixels."""

_FORMS = "write HOST:PORT, unix:PATH, :DISPLAY or none"


class VncAddress(NamedTuple):
    """Where to listen: `host` and `port` (0: any free one) for tcp, `path` for unix; kind none: nowhere."""

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, what: str = "vnc address") -> VncAddress:
        """From ``HOST:PORT``, ``:DISPLAY`` (of this host alone), ``unix:PATH`` or ``none``. Raises `ConfigError`."""
        if text == "none":
            return cls("none")
        if text.startswith("unix:"):
            return cls("unix", path=text[5:]).check(what)
        if text.startswith(":") and text.count(":") == 1:
            number = parse_integer(text[1:], f"{what}: display", 0, 65535 - FIRST_PORT)
            return cls("tcp", "127.0.0.1", FIRST_PORT + number)
        return _host_and_port(text, what)

    def check(self, what: str = "vnc address") -> VncAddress:
        """The same record, if one can listen there; raises `ConfigError` naming `what` otherwise."""
        if "\0" in self.path + self.host:
            raise ConfigError(f"{what} holds a NUL character")
        if self.kind == "unix":
            if not self.path:
                raise ConfigError(f"{what} unix has no path", "write unix:PATH")
            if len(self.path.encode("utf-8", "surrogateescape")) > UNIX_PATH_LIMIT:
                raise ConfigError(
                    f"{what} path {self.path!r} is too long for a socket", f"{UNIX_PATH_LIMIT} bytes are the limit"
                )
        elif self.kind == "tcp":
            if not self.host:
                raise ConfigError(f"{what} has no host", "write 127.0.0.1:PORT, or 0.0.0.0:PORT for everyone")
            if len(self.host) > HOST_LIMIT or not self.host.isprintable() or " " in self.host or "/" in self.host:
                raise ConfigError(f"{what} {self.host[:32]!r} is no host")
            parse_integer(self.port, f"{what} port", 0, 65535)
        elif self.kind != "none":
            raise ConfigError(f"{what} is of no known kind", _FORMS)
        return self

    @property
    def text(self) -> str:
        """The spelling that `parse` reads back."""
        if self.kind != "tcp":
            return f"unix:{self.path}" if self.kind == "unix" else self.kind
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether, by its name alone, nobody on another host can reach it."""
        if self.kind != "tcp" or self.host.lower() == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class VncConfig(NamedTuple):
    """A server for viewers at `address`.

    `to`: the last port to try, 0 for no other. `password` asks for one, made up unless it is in `password_file`. `tls`:
    True allows encrypted connections only, False offers no encryption, None leaves it to the viewers. `keys` is a
    directory of ``tvmm keys``. `size` is that of a screen that the guest has not set yet, in pixels. `web`: where
    browsers find it. See the module for what holds if little is said.
    """

    address: VncAddress = VncAddress("none")
    to: int = 0
    password: bool = False
    password_file: str = ""
    view_only_password_file: str = ""
    users_file: str = ""
    tls: bool | None = None
    keys: str = ""
    insecure: bool = False
    share: str = "allow-exclusive"
    lossy: bool = True
    max_viewers: int = 32
    web: VncAddress = VncAddress("none")
    size: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> VncConfig:
        """From the value of ``--vnc``. Raises `ConfigError`."""
        if not text:
            raise ConfigError("vnc is empty", _FORMS)
        for item in split_commas(text)[1:]:
            key = item.partition("=")[0]
            if key in _QEMU:
                raise ConfigError(f"there is no vnc option {key!r} here", _QEMU[key])
        return cls(**parse_values(_named(text), "vnc", VNC_PROPERTIES, first="address")).check()

    def check(self) -> VncConfig:
        """The same record, if its fields are in range and go together; raises `ConfigError` otherwise."""
        check_values(self, "vnc", VNC_PROPERTIES)
        self.address.check()
        self.web.check("vnc web address")
        if self.address.kind == "none":
            if self != VncConfig():
                raise ConfigError("vnc none takes no options", "they say how viewers come in, and there are none")
            return self
        if self.web.kind == "unix":
            raise ConfigError("vnc web address is no socket that a browser can reach", "write web=HOST:PORT")
        if self.web.kind == self.address.kind == "tcp" and self.web[1:3] == self.address[1:3] and self.web.port:
            raise ConfigError(f"viewers and browsers both want {self.web.text}", "give them different ports")
        self._check_range()
        if self.tls is False and self.keys:
            raise ConfigError("vnc keys are for TLS, and tls is off", "leave one of them out")
        if self.tls is False and self.users_file and not self.insecure:
            raise ConfigError(
                "users would send their passwords in the clear, since tls is off",
                "leave tls=off out, or say insecure=on",
            )
        if self.tls is False and not self.web.is_local and not self.insecure:
            raise ConfigError(
                f"browsers would send the console's token to {self.web.text} in the clear, since tls is off",
                "leave tls=off out, or say insecure=on",
            )
        if self.size is not None:
            _check_size(self.size)
        return self

    def _check_range(self) -> None:
        if not self.to:
            return
        parse_integer(self.to, "vnc option to", 1, 65535)
        if self.address.kind != "tcp" or not self.address.port:
            raise ConfigError("vnc option to has no meaning without a port", "write HOST:PORT,to=PORT")
        if not 0 <= self.to - self.address.port < PORTS_LIMIT:
            raise ConfigError(
                f"vnc option to {self.to} is out of range",
                f"it goes from {self.address.port} to {min(65535, self.address.port + PORTS_LIMIT - 1)}",
            )

    @property
    def asks_password(self) -> bool:
        """Whether there is a password that belongs to no user."""
        if self.password or self.password_file or self.view_only_password_file:
            return True
        return not (self.address.is_local or self.users_file or self.insecure)

    @property
    def generates_password(self) -> bool:
        """Whether it is to be made up, and printed."""
        return self.asks_password and not self.password_file

    @property
    def encryption(self) -> Literal["off", "offered", "required"]:
        """What becomes of `tls`: on this host nobody listens, unless it is wanted for names or with certificates."""
        if self.tls is not None:
            return "required" if self.tls else "off"
        local = self.address.is_local and self.web.is_local
        return "off" if local and not (self.users_file or self.keys) else "offered"

    @property
    def clear_users(self) -> bool:
        """Whether users may send their passwords in the clear."""
        return bool(self.users_file) and self.tls is False and self.insecure

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be printed about how safe this is, one line each."""
        if self.address.is_local:
            return ()
        where = self.address.text
        if not (self.asks_password or self.users_file):
            return (f"whoever reaches {where} sees and controls the guest",)
        if self.clear_users:
            return (f"users send their passwords to {where} in the clear",)
        if self.asks_password and self.encryption != "required":
            return (
                f"VNC authentication at {where} is weak, and without TLS all can be read on its way; "
                "tls=on allows encrypted connections only",
            )
        if self.encryption != "required":
            return (f"viewers may come to {where} without encryption; tls=on allows encrypted connections only",)
        return ()

    def spelling(self) -> str:
        """The command line's spelling of this record, without options that have their default."""
        return join_options({"address": self.address.text, **spelled(self, VNC_PROPERTIES)}, first="address")


_QEMU = {
    "password-secret": "write password-file=PATH",
    "tls-creds": "write tls=on, and keys=DIR for certificates of 'tvmm keys'",
    "websocket": "write web=HOST:PORT",
    "reverse": "viewers connect to tvmm, not the other way round",
    "sasl": "write users-file=PATH for users with passwords",
}
"""Options that people know from QEMU, and what to write instead."""


def _named(text: str) -> str:
    """`text` with its first item named: there may be an equals sign in a path."""
    return text if text.startswith("address=") or not text.startswith("unix:") else f"address={text}"


def _host_and_port(text: str, what: str) -> VncAddress:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        raise ConfigError(f"{what} {text!r} has no port", _FORMS)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ConfigError(f"{what} {text!r} has brackets around no IPv6 address", "write HOST:PORT without")
    elif ":" in host:
        raise ConfigError(f"{what} {text!r} is ambiguous", "put an IPv6 address into brackets: [::1]:5900")
    number = parse_integer(port, f"{what} port", 0, 65535)
    if 0 < number <= DISPLAY_LIMIT:
        raise ConfigError(
            f"{what} {text!r} has port {number}, which looks like a display",
            f"write port {FIRST_PORT + number}, or :{number} for that display of this host alone",
        )
    return VncAddress("tcp", host, number).check(what)


def _read_to(text: str, what: str) -> int:
    number = parse_integer(text, what, 0, 65535)
    return number + FIRST_PORT if number <= DISPLAY_LIMIT else number


def _read_size(text: str, what: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not cross:
        raise ConfigError(f"{what} {text!r} is no size of a screen", "write WIDTHxHEIGHT, e.g. 1280x800")
    return _check_size(
        (parse_integer(width, f"{what} width", 0, 65535), parse_integer(height, f"{what} height", 0, 65535))
    )


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    for what, value, least, most in zip(("width", "height"), size, MIN_SIZE, MAX_SIZE, strict=True):
        parse_integer(value, f"vnc property size {what}", least, most)
    return size


def _read_web(text: str, what: str) -> VncAddress:
    if text.startswith(":"):
        raise ConfigError(f"{what} {text!r} has no host", "write web=HOST:PORT")
    return VncAddress.parse(text, what)


_ADDRESS = Codec(lambda text, what: VncAddress.parse(text), lambda address: address.text)

VNC_PROPERTIES = with_defaults(
    VncConfig,
    Property(
        "address", "address", None, "where to listen: HOST:PORT, unix:PATH, or :DISPLAY of this host alone",
        codec=_ADDRESS,
    ),
    Property("to", "port", None, "last port, or display, to try if others are taken", otherwise="none",
        codec=Codec(_read_to, str)),
    Property("password", "boolean", None, "ask viewers for a password, made up and printed",
        otherwise="on off loopback, else off"),
    Property("password-file", "text", None, "file with the password; nobody else may be able to read it"),
    Property("view-only-password-file", "text", None, "file with the password of those who may only look"),
    Property("users-file", "text", None, "file with lines user:password; viewers are asked for both"),
    Property("tls", "boolean", None, "on: encrypted connections only; off: none",
        otherwise="offered off loopback, else off"),
    Property("keys", "text", None, "directory of 'tvmm keys' with the certificate", otherwise="a throw-away one"),
    Property("insecure", "boolean", None,
        "off loopback, let in who comes; with tls=off, let users say passwords in the clear"),
    Property("share", "choice", None, "whether a viewer may have the others sent away",
        choices=("allow-exclusive", "force-shared", "ignore")),
    Property("lossy", "boolean", None, "JPEG for viewers that ask for it"),
    Property("max-viewers", "integer", None, "viewers at once", 1, MAX_VIEWERS),
    Property("web", "address", None, "HOST:PORT of the page for browsers", otherwise="none",
        codec=Codec(_read_web, lambda address: address.text)),
    Property("size", "size", None, "screen before the guest sets one, e.g. 1280x800", otherwise="the display's own",
        codec=Codec(_read_size, lambda size: f"{size[0]}x{size[1]}")),
)  # fmt: skip
"""What ``--vnc`` takes."""

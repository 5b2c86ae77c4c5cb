"""``--incoming tcp:HOST:PORT|unix:PATH|defer``: where a guest from another tvmm is waited for, and from whom.

The same addresses name the other end in ``tvmm migrate --to``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.names import UNIX_PATH_LIMIT
from tvmm.config.options import nearest
from tvmm.config.units import parse_integer
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ADDRESS_KINDS", "DEFER", "HOST_LIMIT", "IncomingConfig", "MigrationAddress", "check_listeners_in"]

ADDRESS_KINDS = ("tcp", "unix")
DEFER = "defer"
"""Wait for the command ``migrate-incoming`` to name the address."""
HOST_LIMIT = 253
"""Characters in a host name (RFC 1035, 2.3.4)."""


class MigrationAddress(NamedTuple):
    """One end of a migration: `path` belongs to unix, `host` and `port` to tcp (0, to listen only: any free one)."""

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, what: str = "address", *, listen: bool = False) -> Self:
        """From ``tcp:HOST:PORT``, ``HOST:PORT`` or ``unix:PATH``; an IPv6 address goes into brackets.

        `what` names the value in messages. `listen`: port 0 is one. Raises `ConfigError`.
        """
        forms = "write tcp:HOST:PORT or unix:PATH"
        kind, colon, rest = text.partition(":")
        if "\0" in text:
            raise ConfigError(f"{what} holds a NUL character")
        if not text or not colon:
            raise ConfigError(f"{what} {text!r} has no port" if text else f"{what} is empty", forms)
        if kind == "unix":
            return cls("unix", path=_path(rest, what))
        if kind != "tcp":
            # `tcp` may be left out, so this may be a host, or a kind that there is not.
            if rest.count(":") and not text.startswith("["):
                guess = nearest(kind, ADDRESS_KINDS)
                raise ConfigError(
                    f"{what} {text!r} is of no known kind", f"did you mean {guess!r}? ({forms})" if guess else forms
                )
            if not _numeric(rest) and not text.startswith("["):
                raise ConfigError(f"{what} {text!r} is neither an address of a kind that there is nor HOST:PORT", forms)
            rest = text
        host, port = _host_and_port(rest, what, 0 if listen else 1)
        return cls("tcp", host, port)

    @property
    def uri(self) -> str:
        """The spelling that `parse` reads back, the same for all spellings of one address."""
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether, by its name alone, nothing that is sent there leaves this host."""
        if self.kind == "unix" or self.host.lower() == "localhost":
            return True
        from ipaddress import ip_address

        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def check_listeners_in(address: MigrationAddress, *, protected: bool, insecure: bool) -> None:
    """Raise `ConfigError` if others could read guest memory on its way, or send their own, and nobody allowed it.

    `protected`: TLS, by certificates or a pairing code.
    """
    if not (protected or insecure or address.is_local):
        raise ConfigError(
            f"{address.uri} is reached over a network, and without TLS others can read and change the guest",
            "use --tls (see 'tvmm keys --help') or --pair, or say --insecure",
        )


class IncomingConfig(NamedTuple):
    """What a machine waits for instead of booting: a guest at `uri` (``defer``: at one that is told later).

    `tls`: only from who has a certificate, checked against those in `keys` ('': the user's own). `pair`: only from who
    knows the code that is printed. `insecure`: from whoever comes, also over a network.
    """

    uri: str
    tls: bool = False
    keys: str = ""
    pair: bool = False
    insecure: bool = False

    @property
    def address(self) -> MigrationAddress | None:
        """`uri` in its parts; None if it is told later."""
        return None if self.uri == DEFER else MigrationAddress.parse(self.uri, "incoming", listen=True)

    def check(self) -> IncomingConfig:
        """The same record with the plain spelling of `uri`; raises `ConfigError` if nobody could arrive like this."""
        if "\0" in self.keys:
            raise ConfigError("keys holds a NUL character")
        if self.pair and (self.tls or self.keys):
            raise ConfigError("a pairing code takes the place of certificates", "give --pair alone, or --tls")
        if self.insecure and (self.tls or self.pair):
            raise ConfigError("--insecure means without TLS", "leave it out, or --tls and --pair")
        if self.keys and not self.tls:
            raise ConfigError("--keys has no meaning without --tls")
        address = self.address
        if address is None:
            return self
        check_listeners_in(address, protected=self.tls or self.pair, insecure=self.insecure)
        return self._replace(uri=address.uri)


def _path(path: str, what: str) -> str:
    if not path:
        raise ConfigError(f"{what} unix has no path", "write unix:PATH")
    if len(path.encode("utf-8", "surrogateescape")) > UNIX_PATH_LIMIT:
        raise ConfigError(f"{what} path {path!r} is too long for a socket", f"{UNIX_PATH_LIMIT} bytes are the limit")
    return path


def _numeric(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def _host_and_port(text: str, what: str, lowest_port: int) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``."""
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        raise ConfigError(f"{what} {text!r} has no port", "write tcp:HOST:PORT, e.g. tcp:127.0.0.1:4444")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ConfigError(f"{what} {text!r} has brackets around no IPv6 address", "write tcp:HOST:PORT without")
    elif ":" in host:
        raise ConfigError(f"{what} {text!r} is ambiguous", "put an IPv6 address into brackets: tcp:[::1]:4444")
    if not host:
        everyone = ", or tcp:0.0.0.0:PORT for everyone" if not lowest_port else ""
        raise ConfigError(f"{what} {text!r} has no host", f"write tcp:127.0.0.1:PORT{everyone}")
    if len(host) > HOST_LIMIT or not host.isprintable() or " " in host:
        raise ConfigError(f"{what} {host[:32]!r}... is no host" if len(host) > 32 else f"{what} {host!r} is no host")
    return host, parse_integer(port, f"{what} port", lowest_port, 65535)

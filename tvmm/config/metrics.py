"""``--metrics HOST:PORT|unix:PATH|none[,key=val]``: where Prometheus finds what the machine counts.

On a loopback address or a unix socket everybody may read it, who is on this host and reaches it. Anywhere else whoever
asks has to show a token, or ``insecure=on`` says that nobody has to.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.options import join_options
from tvmm.config.properties import Codec, Property, check_values, parse_values, spelled, with_defaults
from tvmm.config.units import parse_integer
from tvmm.config.vnc import VncAddress
from tvmm.errors import ConfigError

__all__ = ["METRICS_PROPERTIES", "MetricsConfig", "parse_address"]

_FORMS = "write HOST:PORT, unix:PATH or none"


class MetricsConfig(NamedTuple):
    """An endpoint at `address`. `token_file` holds what clients have to show, as ``Authorization: Bearer TOKEN``."""

    address: VncAddress = VncAddress("none")
    token_file: str = ""
    insecure: bool = False

    @classmethod
    def parse(cls, text: str) -> MetricsConfig:
        """From the value of ``--metrics``. Raises `ConfigError`."""
        if not text:
            raise ConfigError("metrics is empty", _FORMS)
        named = f"address={text}" if text.startswith("unix:") else text
        return cls(**parse_values(named, "metrics", METRICS_PROPERTIES, first="address")).check()

    def check(self) -> MetricsConfig:
        """The same record, if its fields are in range and go together; raises `ConfigError` otherwise."""
        check_values(self, "metrics", METRICS_PROPERTIES)
        self.address.check("metrics address")
        if self.address.kind == "none":
            if self != MetricsConfig():
                raise ConfigError("metrics none takes no options", "they say who may read them, and there is nothing")
            return self
        if self.insecure and self.token_file:
            raise ConfigError("metrics insecure lets everybody read, and token-file does not", "leave one of them out")
        if not (self.address.is_local or self.token_file or self.insecure):
            raise ConfigError(
                f"whoever reaches {self.address.text} could read the metrics",
                "name a token-file=PATH, say insecure=on, or listen at 127.0.0.1",
            )
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be printed about how safe this is, one line each."""
        if self.address.is_local:
            return ()
        if self.insecure:
            return (f"whoever reaches {self.address.text} can read the metrics",)
        return (f"the token is sent to {self.address.text} in the clear: put a proxy with TLS before it",)

    def spelling(self) -> str:
        """The command line's spelling of this record, without options that have their default."""
        return join_options({"address": self.address.text, **spelled(self, METRICS_PROPERTIES)}, first="address")


def parse_address(text: str) -> VncAddress:
    """From ``HOST:PORT``, ``:PORT`` (of this host alone), ``unix:PATH`` or ``none``. Raises `ConfigError`."""
    if text == "none":
        return VncAddress("none")
    if text.startswith("unix:"):
        return VncAddress("unix", path=text[5:]).check("metrics address")
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        raise ConfigError(f"metrics address {text!r} has no port", _FORMS)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ConfigError(f"metrics address {text!r} has brackets around no IPv6 address", _FORMS)
    elif ":" in host:
        raise ConfigError(f"metrics address {text!r} is ambiguous", "put an IPv6 address into brackets: [::1]:9100")
    number = parse_integer(port, "metrics address port", 0, 65535)
    return VncAddress("tcp", host or "127.0.0.1", number).check("metrics address")


_ADDRESS = Codec(lambda text, what: parse_address(text), lambda address: address.text)

METRICS_PROPERTIES = with_defaults(
    MetricsConfig,
    Property(
        "address", "address", None, "where to listen: HOST:PORT, :PORT of this host alone, or unix:PATH",
        codec=_ADDRESS,
    ),
    Property("token-file", "text", None, "file with what clients have to show; nobody else may be able to read it"),
    Property("insecure", "boolean", None, "off loopback, let everybody read"),
)  # fmt: skip
"""What ``--metrics`` takes."""

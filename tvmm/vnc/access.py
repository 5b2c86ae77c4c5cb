"""From what ``--vnc`` says to who may come in: files are read, keys made, and what people have to know is put in words.

`open_access` does it all, once, when a server starts. It waits for the disk and makes keys (a tenth of a second), so
it belongs in a thread.
"""

from __future__ import annotations

import datetime
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tvmm.errors import HostError, UserError
from tvmm.vnc.lockout import Limits
from tvmm.vnc.passwords import Passwords, expiry_time, generate_password
from tvmm.vnc.private_files import read_password, read_private, read_users
from tvmm.vnc.rsa_aes import KEY_BITS, RsaKey
from tvmm.vnc.security import Means, Policy, auth_words, security_types
from tvmm.vnc.tls_context import anonymous_context, keys_context, throw_away_context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.config.vnc import VncConfig
    from tvmm.vnc.security_types import SecurityType
    from tvmm.vnc.tls_context import CertificateContext

__all__ = ["RSA_KEY_NAME", "Access", "open_access", "rsa_key"]

CERTIFICATE_NAME = "host.pem"
"""In a directory of ``tvmm keys``: key and certificate of this host."""
RSA_KEY_NAME = "vnc-rsa.pem"
"""There too, made when it is first needed: viewers remember it."""


class Access:
    """Who may come in. `types` are to be offered in their order; `lines` are to be printed when the server starts,
    a password that was made up among them; `certificate` is for other servers at the same place, too (None: no TLS)."""

    def __init__(
        self,
        config: VncConfig,
        passwords: Passwords,
        means: Means,
        certificate: CertificateContext | None,
        lines: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self.passwords = passwords
        self.certificate = certificate
        self.limits = Limits(viewers=config.max_viewers)
        self.lines = tuple(lines)
        policy = Policy(config.asks_password, config.encryption, config.clear_users)
        self.types: tuple[SecurityType, ...] = tuple(security_types(passwords, policy, means))
        self._asks = config.asks_password
        self._clock = clock

    @property
    def auth(self) -> tuple[str, str]:
        """QAPI's VncPrimaryAuth and VncVencryptSubAuth ('': none)."""
        return auth_words(self.types)

    def set_password(self, password: str) -> None:
        """Let `password` be the one from now on, '' for nobody. Raises `UserError`."""
        self._check()
        self.passwords.set_password(password)

    def expire_password(self, time: str) -> None:
        """Let the password end at `time`, see `expiry_time`. Raises `UserError`."""
        self._check()
        self.passwords.expire(expiry_time(time, self._clock()))

    def _check(self) -> None:
        if not self._asks:
            raise UserError("the VNC server asks for no password", "start the machine with --vnc ...,password=on")


def open_access(config: VncConfig, clock: Callable[[], float], names: Sequence[str] = ()) -> Access:
    """What `config`, which is checked, says. `clock` tells the seconds since 1970; `names` are this host's.

    Raises `UserError` for files that cannot be used.
    """
    lines = list(config.warnings)
    passwords = _passwords(config, clock, lines)
    certificate, means = None, Means()
    if config.encryption != "off":
        if config.keys:
            certificate = keys_context(Path(config.keys) / CERTIFICATE_NAME)
        else:
            host = [config.address.host] if config.address.host else []
            now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
            certificate = throw_away_context([*host, *names], now)
        lines.append(f"VNC certificate SHA-256 {certificate.fingerprint}")
        # Who has keys has viewers that check them, and no use for TLS in which nobody is checked.
        anonymous = None if config.keys else anonymous_context()
        key = None
        if config.asks_password or passwords.has_users:
            key = rsa_key(Path(config.keys) / RSA_KEY_NAME) if config.keys else RsaKey()
            lines.append(f"VNC key for RSA-AES {key.fingerprint}")
        means = Means(certificate.context, anonymous, key)
    return Access(config, passwords, means, certificate, lines, clock)


def _passwords(config: VncConfig, clock: Callable[[], float], lines: list[str]) -> Passwords:
    full = ""
    if config.generates_password:
        full = generate_password()
        lines.append(f"VNC password {full} (viewers with VNC authentication use 8 characters of it)")
    elif config.password_file:
        full = read_password(config.password_file)
    view_only = read_password(config.view_only_password_file) if config.view_only_password_file else ""
    users = read_users(config.users_file) if config.users_file else None
    return Passwords(clock, full=full, view_only=view_only, users=users)


def rsa_key(path: Path) -> RsaKey:
    """The key in the file at `path`, made if there is none. Raises `HostError` for what is no key of the right size.

    Where it cannot be written it is for this time only: that costs people a look at the fingerprint, and not more.
    """
    if path.exists():
        try:
            key = serialization.load_pem_private_key(read_private(path), None)
        except (ValueError, TypeError) as error:
            raise HostError(f"{path} is no private key", "delete it: a new one is made") from error
        if not isinstance(key, rsa.RSAPrivateKey) or not KEY_BITS <= key.key_size <= 2 * KEY_BITS:
            raise HostError(f"{path} is no RSA key of {KEY_BITS} bits", "delete it: a new one is made")
        return RsaKey(key)
    made = RsaKey()
    data = made.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            # Not over one that another machine has made meanwhile.
            os.link(temporary, path)
        except FileExistsError:
            return rsa_key(path)
        finally:
            temporary.unlink(missing_ok=True)
    return made

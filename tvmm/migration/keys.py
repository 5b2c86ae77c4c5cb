"""The directory with this host's certificate, and on one host the authority that issued it.

::

    DIR/              $XDG_CONFIG_HOME/tvmm/keys, by default ~/.config/tvmm/keys; mode 0700
        ca.pem        certificate of the authority, the only one that is believed
        crl.pem       its revocation list as far as it has come to this host
        host.pem      private key and certificate of this host; mode 0600
        ca.key        private key of the authority, only where 'tvmm keys init' was run; mode 0600
        issued/       there too: each certificate that was issued, as SERIAL.pem
        .lock         held while anything is changed

Files are replaced as a whole, by renaming; a key and its certificate are one file, so that they cannot get out of
step. What anybody but the owner can read is refused and not silently mended: the key may be known to others by now.

A *bundle* is what another host gets: its private key, its certificate, the authority's certificate and the revocation
list, in one PEM text. It comes from outside, so `import_bundle` checks each part against the others.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tvmm.errors import ConfigError, HostError
from tvmm.migration.key_files import check_owner, read_file, system_errors, write_atomically

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cryptography import x509

    from tvmm.migration.authority import Authority, CertificateFacts
    from tvmm.migration.bundle import Bundle

__all__ = [
    "Inventory",
    "IssuedFacts",
    "KeyDirectory",
]

T = TypeVar("T")

_INIT_OR_IMPORT = (
    "make a CA with 'tvmm keys init', or import what another host's CA issued with 'tvmm keys import FILE'"
)


class IssuedFacts(NamedTuple):
    """A certificate that this authority has issued, and when it was revoked."""

    facts: CertificateFacts
    revoked: datetime.datetime | None


class Inventory(NamedTuple):
    """What there is. `revoked` has all serial numbers of the list that this host has, hexadecimal."""

    path: Path
    authority: CertificateFacts | None
    host: CertificateFacts | None
    is_authority: bool
    issued: tuple[IssuedFacts, ...]
    crl_number: int
    revoked: Mapping[str, datetime.datetime]


class KeyDirectory:
    """The keys in directory `path`.

    All methods raise `HostError` for what the system denies or others could have read, `ConfigError` for the rest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority = path / "ca.pem"
        self.crl = path / "crl.pem"
        self.host = path / "host.pem"
        self._authority_key = path / "ca.key"
        self._issued = path / "issued"

    # --- looking ---

    def check(self) -> None:
        """Raise unless a handshake can be made with what is there, and nobody else could have read it."""
        self._check_directory()
        for path in (self.authority, self.crl, self.host):
            if not path.exists():
                raise ConfigError(f"there is no {path.name} in {self.path}", _INIT_OR_IMPORT)
        read_file(self.host, private=True)

    def own(self) -> x509.Certificate:
        """This host's certificate."""
        from tvmm.migration import authority

        self.check()
        return _parsed(self.host, read_file(self.host, private=True), authority.load_certificate)

    def inventory(self) -> Inventory:
        """What there is, also if it is not complete."""
        from tvmm.migration import authority

        self._check_directory()
        ca = self._certificate(self.authority)
        host = self._certificate(self.host, private=True)
        crl = _parsed(self.crl, read_file(self.crl), authority.load_crl) if self.crl.exists() else None
        if ca is None and host is None:
            raise ConfigError(f"there are no keys in {self.path}", _INIT_OR_IMPORT)
        revoked = authority.revoked_serials(crl) if crl is not None else {}
        issued = [IssuedFacts(authority.describe(one), revoked.get(one.serial_number)) for one in self._all_issued()]
        issued.sort(key=lambda one: (one.facts.subject, one.facts.not_before))
        return Inventory(
            self.path,
            authority.describe(ca) if ca is not None else None,
            authority.describe(host) if host is not None else None,
            self._authority_key.exists(),
            tuple(issued),
            authority.crl_number(crl) if crl is not None else 0,
            {f"{serial:x}": when for serial, when in revoked.items()},
        )

    def crl_pem(self) -> bytes:
        """The revocation list, to be carried to other hosts."""
        self._check_directory()
        if not self.crl.exists():
            raise ConfigError(f"there is no revocation list in {self.path}", _INIT_OR_IMPORT)
        return read_file(self.crl)

    # --- changing ---

    def init(self, host: str, names: Sequence[str], now: datetime.datetime, *, force: bool = False) -> None:
        """Make an authority and a certificate for this host, which is called `host` and also `names`."""
        from tvmm.migration import authority

        for name in (host, *names):
            authority.general_name(name)
        self._make_directory()
        with self._locked():
            if not force and (self._authority_key.exists() or self.authority.exists()):
                raise ConfigError(
                    f"there is a CA in {self.path}",
                    "see 'tvmm keys show'; with --force a new one takes its place and no older certificate is believed",
                )
            for old in self._issued.glob("*.pem") if self._issued.is_dir() else ():
                old.unlink()
            new = authority.make_authority(host, now)
            # The certificate goes first and comes last: with ca.pem missing nothing is believed.
            self.authority.unlink(missing_ok=True)
            self._write(self._authority_key, authority.key_pem(new.key))
            self._write(self.crl, authority.make_crl(new, {}, 1, now))
            self._write(self.host, self._issue(new, host, names, now))
            self._write(self.authority, authority.certificate_pem(new.certificate))

    def issue(self, host: str, names: Sequence[str], now: datetime.datetime) -> bytes:
        """A bundle for `host`, which is called `names` too."""
        with self._locked():
            ca = self._load_authority()
            return self._issue(ca, host, names, now) + read_file(self.authority) + read_file(self.crl)

    def revoke(self, what: str, now: datetime.datetime) -> tuple[CertificateFacts, ...]:
        """Put the certificate with serial number `what`, or all of the host `what`, on the list; returns which."""
        from tvmm.migration import authority

        with self._locked():
            ca = self._load_authority()
            crl = _parsed(self.crl, read_file(self.crl), authority.load_crl)
            revoked = authority.revoked_serials(crl)
            everything = self._all_issued()
            wanted = what.lower().replace(":", "").removeprefix("0x").lstrip("0")
            found = [one for one in everything if wanted == f"{one.serial_number:x}"]
            # One host may have got several certificates, and whoever names the host means all of them.
            found = found or [one for one in everything if _is_called(authority.describe(one), what)]
            if not found:
                raise ConfigError(
                    f"this CA has issued no certificate to {what!r}, nor one with that serial number",
                    "'tvmm keys show' lists what it has issued",
                )
            fresh = [one for one in found if one.serial_number not in revoked]
            if not fresh:
                raise ConfigError(f"{what} is revoked already", "'tvmm keys show' tells since when")
            revoked.update({one.serial_number: now for one in fresh})
            self._write(self.crl, authority.make_crl(ca, revoked, authority.crl_number(crl) + 1, now))
            return tuple(authority.describe(one) for one in fresh)

    def import_bundle(self, data: bytes, now: datetime.datetime, *, force: bool = False) -> str:
        """Take over a bundle, or a revocation list alone; returns in a few words what is different now.

        Nothing is changed unless all of `data` is right. An older revocation list never takes the place of a newer
        one of the same authority: who kept an old bundle could take a revocation back with it.
        """
        from tvmm.migration.bundle import Bundle

        parts = Bundle.parse(data)
        self._make_directory()
        with self._locked():
            return self._import_crl(parts) if parts.is_crl else self._import_host(parts, now, force)

    def _import_crl(self, parts: Bundle) -> str:
        from tvmm.migration import authority
        from tvmm.migration.bundle import common_name

        ca = self._certificate(self.authority)
        if ca is None:
            raise ConfigError(
                f"a revocation list comes behind a CA, and there is none in {self.path}",
                "import this host's bundle first ('tvmm keys issue' makes it on the CA's host)",
            )
        crl = parts.crls[0]
        if not authority.is_issued_by(crl, ca):
            raise ConfigError(
                "the revocation list is not of this host's CA",
                f"it is of {common_name(crl.issuer)!r}, here is {common_name(ca.subject)!r}",
            )
        if not self._newer(crl, ca):
            return f"nothing new: revocation list {authority.crl_number(crl)} is not newer than the one that is here"
        self._write(self.crl, parts.crl_pems[0])
        return f"revocation list {authority.crl_number(crl)}: {len(list(crl))} revoked"

    def _import_host(self, parts: Bundle, now: datetime.datetime, force: bool) -> str:
        from tvmm.migration import authority
        from tvmm.migration.bundle import common_name

        ca, host = parts.checked(now)
        old = self._certificate(self.authority)
        if old is not None and old != ca:
            if self._authority_key.exists():
                raise ConfigError(
                    f"{self.path} has a CA of its own",
                    "use another directory (--keys DIR), or move this one away if its CA is not used",
                )
            if not force:
                raise ConfigError(
                    f"the bundle is of another CA ({common_name(ca.subject)!r}) than the one here "
                    f"({common_name(old.subject)!r})",
                    "with --force it takes its place",
                )
            # As in init: between two authorities nothing is believed.
            self.authority.unlink()
            self.crl.unlink(missing_ok=True)
        if self._newer(parts.crls[0], ca):
            self._write(self.crl, parts.crl_pems[0])
        self._write(self.host, parts.key_pem + authority.certificate_pem(host))
        self._write(self.authority, authority.certificate_pem(ca))
        facts = authority.describe(host)
        return f"this host is {facts.subject} ({', '.join(facts.names)}) until {facts.not_after:%Y-%m-%d}"

    def _newer(self, crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
        """Whether `crl`, of `ca`, is newer than the one that is here."""
        from tvmm.migration import authority

        if not self.crl.exists():
            return True
        here = _parsed(self.crl, read_file(self.crl), authority.load_crl)
        return not authority.is_issued_by(here, ca) or authority.crl_number(crl) > authority.crl_number(here)

    def _issue(self, ca: Authority, host: str, names: Sequence[str], now: datetime.datetime) -> bytes:
        """Key and certificate as PEM; the certificate is on record before anybody gets it."""
        from tvmm.migration import authority

        key, certificate = authority.issue(ca, host, names, now)
        with system_errors(f"cannot write to {self.path}"):
            self._issued.mkdir(mode=0o700, exist_ok=True)
        pem = authority.certificate_pem(certificate)
        self._write(self._issued / f"{certificate.serial_number:x}.pem", pem)
        return authority.key_pem(key) + pem

    def _all_issued(self) -> list[x509.Certificate]:
        from tvmm.migration import authority

        if not self._issued.is_dir():
            return []
        paths = sorted(self._issued.glob("*.pem"))
        return [_parsed(path, read_file(path), authority.load_certificate) for path in paths]

    def _load_authority(self) -> Authority:
        from tvmm.migration import authority

        if not self._authority_key.exists():
            raise ConfigError(
                f"there is no CA key in {self.path}",
                "certificates are issued and revoked where 'tvmm keys init' was run",
            )
        key = _parsed(self._authority_key, read_file(self._authority_key, private=True), authority.load_key)
        ca = self._certificate(self.authority)
        if ca is None or ca.public_key() != key.public_key():
            raise ConfigError(
                f"ca.key and ca.pem in {self.path} do not belong together",
                "make a new CA with 'tvmm keys init --force'",
            )
        return authority.Authority(ca, key)

    def _certificate(self, path: Path, *, private: bool = False) -> x509.Certificate | None:
        from tvmm.migration import authority

        return _parsed(path, read_file(path, private=private), authority.load_certificate) if path.exists() else None

    # --- the directory ---

    def _make_directory(self) -> None:
        with system_errors(f"cannot make the key directory {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
        self._check_directory()

    def _check_directory(self) -> None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            raise ConfigError(f"there is no key directory {self.path}", _INIT_OR_IMPORT) from None
        except OSError as error:
            raise HostError(f"cannot look into the key directory {self.path}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode):
            raise HostError(f"{self.path} is not a directory", "move it away, or use --keys DIR")
        check_owner(self.path, found)
        if found.st_mode & 0o077:
            raise HostError(
                f"others may look into the key directory {self.path} (mode {stat.S_IMODE(found.st_mode):04o})",
                f"chmod 0700 {self.path}",
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only one who changes something. Others are done within milliseconds."""
        self._check_directory()
        with system_errors(f"cannot write to {self.path}"):
            descriptor = os.open(
                self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        try:
            with system_errors(f"cannot lock {self.path}"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, path: Path, data: bytes) -> None:
        with system_errors(f"cannot write {path}"):
            write_atomically(path, data)


def _is_called(facts: CertificateFacts, what: str) -> bool:
    return what.lower() in (facts.subject.lower(), *facts.names)


def _parsed(path: Path, data: bytes, load: Callable[[bytes], T]) -> T:
    try:
        return load(data)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be used: {error}", _INIT_OR_IMPORT) from error

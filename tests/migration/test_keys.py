"""The key directory: what is in it, who may read it, and what it takes from outside."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.migration.rig import DAY, Group, now
from tvmm.config.keys import default_keys_directory
from tvmm.errors import ConfigError, HostError
from tvmm.migration import authority
from tvmm.migration.bundle import BUNDLE_LIMIT
from tvmm.migration.keys import KeyDirectory


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


def contents(directory: KeyDirectory) -> dict[str, bytes]:
    """Every key, certificate and list of a key directory."""
    return {str(path.relative_to(directory.path)): path.read_bytes() for path in directory.path.rglob("*.???")}


def test_default_directory() -> None:
    """The XDG directory, if it is absolute as its specification demands, else ~/.config."""
    assert default_keys_directory({"XDG_CONFIG_HOME": "/c"}, "/h") == "/c/tvmm/keys"
    assert default_keys_directory({"XDG_CONFIG_HOME": "c"}, "/h") == "/h/.config/tvmm/keys"
    assert default_keys_directory({}, "/h") == "/h/.config/tvmm/keys"


def test_modes(group: Group) -> None:
    """Directories are 0700 and files 0600, whatever the umask."""
    old = os.umask(0)
    try:
        beta = group.join("beta")
    finally:
        os.umask(old)
    for directory in (group.alpha, beta):
        assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
        for path in directory.path.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_private_key_that_others_can_read_is_refused(group: Group, mode: int) -> None:
    """Both the host's and the authority's, with the command that mends it."""
    group.alpha.host.chmod(mode)
    with pytest.raises(HostError, match=r"others can read the private key .*host.pem \(mode 06.*chmod 0600"):
        group.alpha.check()
    (group.alpha.path / "ca.key").chmod(mode)
    with pytest.raises(HostError, match=r"others can read the private key .*ca.key"):
        group.alpha.issue("beta", [], now())


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o770])
def test_a_directory_that_others_may_enter_is_refused(group: Group, mode: int) -> None:
    """Before anything in it is looked at."""
    group.alpha.path.chmod(mode)
    for look in (group.alpha.check, group.alpha.inventory, group.alpha.crl_pem):
        with pytest.raises(HostError, match="others may look into the key directory"):
            look()


def test_no_links_and_no_devices(group: Group, tmp_path: Path) -> None:
    """A key is a file in the directory itself."""
    moved = group.alpha.host.rename(tmp_path / "elsewhere")
    group.alpha.host.symlink_to(moved)
    with pytest.raises(HostError, match="cannot read"):
        group.alpha.check()
    group.alpha.host.unlink()
    os.mkfifo(group.alpha.host, 0o600)
    with pytest.raises(HostError, match="is not a file"):
        group.alpha.check()


def test_what_is_missing_is_told(group: Group, tmp_path: Path) -> None:
    """Each lack in one line that says how to get there."""
    with pytest.raises(ConfigError, match=r"there is no key directory .*'tvmm keys init'"):
        KeyDirectory(tmp_path / "none").check()
    group.alpha.crl.unlink()
    with pytest.raises(ConfigError, match=r"there is no crl\.pem"):
        group.alpha.check()


def test_init_twice(group: Group) -> None:
    """A second time needs force, and leaves nothing of the first CA."""
    before = contents(group.alpha)
    with pytest.raises(ConfigError, match="there is a CA in"):
        group.alpha.init("alpha", [], now())
    assert contents(group.alpha) == before
    group.alpha.init("alpha", [], now(), force=True)
    after = contents(group.alpha)
    assert all(after.get(name) != data for name, data in before.items())
    assert len(group.alpha.inventory().issued) == 1


def test_init_with_a_wrong_name_leaves_nothing(tmp_path: Path) -> None:
    """Names are checked before anything is made."""
    with pytest.raises(ConfigError):
        KeyDirectory(tmp_path / "keys").init("alpha", ["a b"], now())
    assert not (tmp_path / "keys").exists()


def test_issue_and_import(group: Group) -> None:
    """The other host has its names, the same CA, and no power to issue."""
    beta = group.join("beta", "10.0.0.2")
    found, here = beta.inventory(), group.alpha.inventory()
    assert found.authority == here.authority
    assert found.host is not None
    assert found.host.names == ("beta", "10.0.0.2")
    assert (found.is_authority, here.is_authority) == (False, True)
    assert [one.facts.subject for one in here.issued] == ["alpha", "beta"]
    assert beta.own().serial_number == int(found.host.serial, 16)
    beta.check()
    with pytest.raises(ConfigError, match="there is no CA key in"):
        beta.issue("gamma", [], now())
    with pytest.raises(ConfigError, match="there is no CA key in"):
        beta.revoke("alpha", now())


def test_renewing(group: Group) -> None:
    """A host that has keys takes newer ones of the same CA, the CA's own host too."""
    old = group.alpha.own()
    group.alpha.import_bundle(group.alpha.issue("alpha", [], now()), now())
    assert group.alpha.own() != old
    group.alpha.issue("beta", [], now())


def test_revoking_by_host_takes_all_of_its_certificates(group: Group) -> None:
    """By name or address, whoever has several loses all; then there is nothing left to revoke."""
    group.join("beta", "10.0.0.2")
    group.alpha.issue("beta", [], now())
    assert len(group.alpha.revoke("BETA", now())) == 2
    with pytest.raises(ConfigError, match="beta is revoked already"):
        group.alpha.revoke("beta", now())
    with pytest.raises(ConfigError, match=r"10\.0\.0\.2 is revoked already"):
        group.alpha.revoke("10.0.0.2", now())
    found = group.alpha.inventory()
    assert {one.facts.subject for one in found.issued if one.revoked} == {"beta"}
    assert (found.crl_number, len(found.revoked)) == (2, 2)


def test_revoking_by_serial(group: Group) -> None:
    """As it is listed, or with colons and in capitals as other tools write it."""
    first = authority.describe(group.join("beta").own())
    group.alpha.issue("beta", [], now())
    text = first.serial.zfill(40).upper()
    spelled = ":".join(text[start : start + 2] for start in range(0, 40, 2))
    assert group.alpha.revoke(spelled, now()) == (first,)
    with pytest.raises(ConfigError, match="issued no certificate to 'abc'"):
        group.alpha.revoke("abc", now())


def test_the_list_reaches_another_host(group: Group) -> None:
    """By itself or in a newer bundle; the same one twice is nothing new."""
    beta, gamma = group.join("beta"), group.join("gamma")
    group.alpha.revoke("gamma", now())
    assert beta.inventory().revoked == {}
    assert beta.import_bundle(group.alpha.crl_pem(), now()) == "revocation list 2: 1 revoked"
    assert list(beta.inventory().revoked) == [authority.describe(gamma.own()).serial]
    assert beta.import_bundle(group.alpha.crl_pem(), now()).startswith("nothing new: revocation list 2")
    assert len(group.join("delta").inventory().revoked) == 1


def test_an_old_list_never_takes_the_place_of_a_newer_one(group: Group) -> None:
    """Neither alone nor in an old bundle."""
    old_list, old_bundle = group.alpha.crl_pem(), group.alpha.issue("beta", [], now())
    beta = group.join("beta")
    group.alpha.revoke("beta", now())
    beta.import_bundle(group.alpha.crl_pem(), now())
    for data in (old_list, old_bundle):
        beta.import_bundle(data, now())
        assert beta.inventory().crl_number == 2


def test_keys_of_another_ca(group: Group, tmp_path: Path) -> None:
    """They need force; a host with a CA of its own never takes them; a foreign list is never taken."""
    beta, other = group.join("beta"), Group(tmp_path / "other")
    bundle, before = other.alpha.issue("beta", [], now()), contents(beta)
    for keys_of, match in ((beta, "the bundle is of another CA"), (group.alpha, "has a CA of its own")):
        with pytest.raises(ConfigError, match=match):
            keys_of.import_bundle(bundle, now())
    with pytest.raises(ConfigError, match="the revocation list is not of this host's CA"):
        beta.import_bundle(other.alpha.crl_pem(), now(), force=True)
    assert contents(beta) == before
    group.alpha.revoke("beta", now())
    beta.import_bundle(group.alpha.crl_pem(), now())
    beta.import_bundle(bundle, now(), force=True)
    assert beta.inventory().authority == other.alpha.inventory().authority
    assert beta.inventory().crl_number == 1


def test_a_list_needs_a_ca_first(group: Group, tmp_path: Path) -> None:
    """An empty directory cannot tell whose list it is."""
    with pytest.raises(ConfigError, match="a revocation list comes behind a CA"):
        KeyDirectory(tmp_path / "empty").import_bundle(group.alpha.crl_pem(), now())


def swapped(data: bytes, other: bytes, kind: bytes) -> bytes:
    """`data` with its first block of `kind` in place of which stands that of `other`."""
    begin, end = b"-----BEGIN " + kind + b"-----", b"-----END " + kind + b"-----\n"

    def block(text: bytes) -> bytes:
        return text[text.index(begin) : text.index(end) + len(end)]

    return data.replace(block(data), block(other), 1)


def test_bundles_whose_parts_do_not_fit(group: Group, tmp_path: Path) -> None:
    """Whatever is exchanged, cut off, doubled or garbled is told, and nothing is changed."""
    good, other = group.alpha.issue("beta", [], now()), Group(tmp_path / "other").alpha.issue("beta", [], now())
    bad = {
        b"": "it has no PEM blocks",
        b"\0" * 100: "it has no PEM blocks",
        good[: len(good) // 2]: "it lacks parts",
        good + good: "it lacks parts, or has too many",
        good * 6: "it is too large",
        good + b"x" * BUNDLE_LIMIT: "it is too large",
        swapped(good, other, b"PRIVATE KEY"): "its key is not that of its certificate",
        swapped(good, other, b"CERTIFICATE"): "its CA has not signed its other parts",
        swapped(good, other, b"X509 CRL"): "its CA has not signed its other parts",
        good.replace(b"MIIB", b"AAAA"): "neither a bundle of keys",
        group.alpha.authority.read_bytes(): "it lacks parts",
    }
    directory = KeyDirectory(tmp_path / "new")
    for data, complaint in bad.items():
        with pytest.raises(ConfigError, match=complaint):
            directory.import_bundle(data, now())
        assert not directory.authority.exists()
    with pytest.raises(ConfigError, match="has expired on"):
        directory.import_bundle(good, now() + 400 * DAY)
    directory.import_bundle(b"Dear colleague,\r\n" + good.replace(b"\n", b"\r\n"), now())
    directory.check()


def test_a_host_cannot_act_as_ca(group: Group, tmp_path: Path) -> None:
    """A certificate signed with a host's key is of no CA."""
    beta = group.join("beta")
    own = beta.host.read_bytes()
    fake = authority.Authority(beta.own(), authority.load_key(own[: own.index(b"-----BEGIN CERT")]))
    key, certificate = authority.issue(fake, "mallory", [], now())
    bundle = authority.key_pem(key) + authority.certificate_pem(certificate) + authority.certificate_pem(beta.own())
    with pytest.raises(ConfigError, match="its second certificate is not that of a CA"):
        KeyDirectory(tmp_path / "new").import_bundle(bundle + group.alpha.crl_pem(), now())


def test_a_failed_write_changes_nothing(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old list and no other file."""
    before = contents(group.alpha)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tvmm.migration.key_files.os.fsync", full)
    with pytest.raises(HostError, match=r"cannot write .*crl\.pem: No space left on device"):
        group.alpha.revoke("alpha", now())
    assert contents(group.alpha) == before


def test_garbled_files_are_the_users_error(group: Group) -> None:
    """Whatever somebody has written into them."""
    for path in (group.alpha.host, group.alpha.authority, group.alpha.crl):
        data = path.read_bytes()
        path.write_bytes(b"garbage")
        with pytest.raises(ConfigError, match=f"{path.name} cannot be used"):
            group.alpha.inventory()
        path.write_bytes(data)
    group.alpha.inventory()



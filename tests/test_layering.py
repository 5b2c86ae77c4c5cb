"""The rules between packages, read off their import statements."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "tvmm"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

IO_MODULES = {"trio", "cffi", "os", "socket", "threading", "mmap", "fcntl", "select", "subprocess"}

PURE = (
    "errors.py",
    "records.py",
    "screen.py",
    "state.py",
    "state_codec.py",
    "bus.py",
    "clones/plan.py",
    "screen.py",
    "boot/",
    "devices/",
    "config/",
    "memory/layout.py",
    "memory/regions.py",
    "vcpu/runstate.py",
    "vcpu/exits.py",
    "vcpu/registers.py",
    "vcpu/cpuid.py",
    "vcpu/cpu_features.py",
    "vcpu/msrs.py",
    "vcpu/state.py",
    "vcpu/chips.py",
    "vcpu/compat.py",
    "vcpu/compat_check.py",
    "vcpu/assist/",
    "chardev/history.py",
    "chardev/escape.py",
    "chardev/editor.py",
    "control/balloon_target.py",
    "control/balloon_verbs.py",
    "control/qmp.py",
    "control/verbs.py",
    "control/device_verbs.py",
    "control/input_target.py",
    "control/input_verbs.py",
    "control/limit_target.py",
    "control/limit_verbs.py",
    "control/migration_info.py",
    "control/migration_target.py",
    "control/migration_verbs.py",
    "control/save_info.py",
    "control/save_target.py",
    "control/save_verbs.py",
    "control/target.py",
    "control/vnc_target.py",
    "control/vnc_verbs.py",
    "control/metrics_verbs.py",
    "metrics/catalog.py",
    "metrics/histogram.py",
    "metrics/http_rules.py",
    "metrics/model.py",
    "metrics/rates.py",
    "metrics/snapshot.py",
    "migration/status.py",
    "snapshot/description.py",
    "snapshot/format.py",
    "snapshot/options.py",
    "snapshot/status.py",
    "nbd/codec.py",
    "nbd/constants.py",
    "nbd/handshake.py",
    "nbd/outage.py",
    "nbd/uri.py",
    "net/dnsmasq.py",
    "net/firewall.py",
    "net/plan.py",
    "net/spec.py",
    "net/steps.py",
    "virtio/",
    "vnc/web_panel.py",
    "vnc/web_rules.py",
    "migration/authority.py",
    "migration/bundle.py",
    "migration/disk_frames.py",
    "migration/disk_policy.py",
    "migration/pairing.py",
    "migration/tls_errors.py",
    "vnc/des.py",
    "vnc/eax.py",
    "vnc/lockout.py",
    "vnc/passwords.py",
    "vnc/rsa_aes.py",
    "vnc/security.py",
    "vnc/security_types.py",
    "vnc/vnc_auth.py",
    "vnc/vencrypt.py",
    "vnc/client.py",
    "vnc/client_messages.py",
    "vnc/clipboard.py",
    "vnc/clipboard_share.py",
    "vnc/congestion.py",
    "vnc/damage.py",
    "vnc/encodings.py",
    "vnc/errors.py",
    "vnc/events.py",
    "vnc/facts.py",
    "vnc/handshake.py",
    "vnc/keys.py",
    "vnc/link.py",
    "vnc/pixel_format.py",
    "vnc/pointer.py",
    "vnc/quality.py",
    "vnc/remote_input.py",
    "vnc/server_messages.py",
    "vnc/session.py",
    "vnc/share.py",
    "vnc/states.py",
    "vnc/tables.py",
    "vnc/tight_decoder.py",
    "vnc/updates.py",
)
"""Modules without IO: state machines, tables, parsers."""

SHELLS = ("virtio/runner/",)
"""Packages below pure ones that do IO for them."""


def is_pure(module: str) -> bool:
    """Whether a module has to do without IO."""
    return module.startswith(PURE) and not module.startswith(SHELLS)


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a module imports at run time, also inside functions; not those for type checkers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return frozenset(found)


def tops(path: Path) -> set[str]:
    """Top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(path)}


def test_modules_are_found() -> None:
    """The rules below look at the real tree."""
    assert "machine.py" in MODULES
    assert len(MODULES) > 40


@pytest.mark.parametrize("module", [name for name in MODULES if is_pure(name)])
def test_pure_modules_do_no_io(module: str) -> None:
    """Models, parsers and tables import nothing that waits, opens or calls the kernel."""
    assert not tops(ROOT / module) & IO_MODULES


@pytest.mark.parametrize("prefix", PURE)
def test_pure_list_is_not_stale(prefix: str) -> None:
    """Each name in the list of pure modules exists."""
    assert any(name.startswith(prefix) for name in MODULES)


def test_cffi_only_in_kvm() -> None:
    """The extension module and cffi are used in one package."""
    users = [
        name
        for name in MODULES
        if any(used == "cffi" or used.startswith("tvmm.kvm._kvm") for used in imports(ROOT / name))
    ]
    assert users
    assert all(name.startswith("kvm/") for name in users)


def test_pyroute2_only_in_net() -> None:
    """Network set-up is one package's affair."""
    assert not [name for name in MODULES if "pyroute2" in tops(ROOT / name) and not name.startswith("net/")]


def test_cryptography_only_where_it_is_needed() -> None:
    """Certificates and ciphers are the affair of those who talk to strangers, and of encrypted files."""
    users = [name for name in MODULES if "cryptography" in tops(ROOT / name)]
    assert users
    assert all(name.startswith(("migration/", "vnc/", "snapshot/sealing.py")) for name in users)


FAMILIES = ("virtio", "vnc", "migration", "devices")


@pytest.mark.parametrize("family", FAMILIES)
def test_device_families_do_not_know_each_other(family: str) -> None:
    """Only the wiring joins them."""
    others = tuple(f"tvmm.{other}" for other in FAMILIES if other != family)
    for name in MODULES:
        if name.startswith(f"{family}/"):
            assert not [used for used in imports(ROOT / name) if used.startswith(others)], name


def test_nothing_imports_the_command_line() -> None:
    """The command line is the top of the tree."""
    for name in MODULES:
        if not name.startswith("cli/"):
            assert not [used for used in imports(ROOT / name) if used.startswith("tvmm.cli")], name


def attributes(path: Path) -> set[str]:
    """Every `module.name` that a module's code uses."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def test_only_the_command_line_reads_the_environment() -> None:
    """argv and the environment are read in one package, and by the build."""
    for name in MODULES:
        if not name.startswith(("cli/", "guest/build.py")):
            assert not attributes(ROOT / name) & {"os.environ", "os.getenv", "sys.argv"}, name


def test_prometheus_only_where_metrics_are_exposed() -> None:
    """Who does not serve metrics does not import its client library."""
    users = [name for name in MODULES if "prometheus_client" in tops(ROOT / name)]
    assert users == ["metrics/exposition.py"]

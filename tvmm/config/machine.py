"""Everything that describes one machine, in one record.

``MachineConfig()`` is a machine already: the built-in guest with 256 MiB and one processor.
``MachineConfig.parse`` takes what the command line and configuration files take, under the same names. Both
end in `check`; after it every part may trust the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.cpu import CpuConfig
from tvmm.config.kernel import KernelConfig
from tvmm.config.memory import MemoryConfig
from tvmm.config.names import UNIX_PATH_LIMIT, check_name
from tvmm.config.options import choice_of, parse_bool, unknown_name
from tvmm.config.serial import SerialConfig
from tvmm.config.units import parse_duration
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import Any

    from tvmm.config.balloon import BalloonConfig
    from tvmm.config.console import ConsoleConfig
    from tvmm.config.device import DeviceConfig
    from tvmm.config.disk import DiskConfig
    from tvmm.config.display import DisplayConfig
    from tvmm.config.incoming import IncomingConfig
    from tvmm.config.input import InputConfig
    from tvmm.config.metrics import MetricsConfig
    from tvmm.config.net import NetConfig
    from tvmm.config.rng import RngConfig
    from tvmm.config.vnc import VncConfig
    from tvmm.config.vsock import VsockConfig

__all__ = ["ASSIST_CHOICES", "OPTION_NAMES", "MachineConfig"]

ASSIST_CHOICES = ("auto", "on", "off")

POWERDOWN_LIMIT_S = 86_400.0

OPTION_NAMES = (
    "name",
    "memory",
    "cpus",
    "cpu",
    "kernel",
    "initrd",
    "append",
    "entry",
    "decompress",
    "serial",
    "control",
    "disk",
    "net",
    "device",
    "vnc",
    "vsock",
    "display",
    "metrics",
    "reboot",
    "paused",
    "powerdown_timeout",
    "assist",
    "incoming",
    "tls",
    "keys",
    "pair",
    "insecure",
)
"""What `MachineConfig.parse` takes, and with it the command line and configuration files."""


class MachineConfig(NamedTuple):
    """One machine.

    `name` is '' for a machine that nobody needs to find. `control` is the path of the control socket, ''
    for none other than that in `runtime_dir`, the place for files of running machines ('': the machine is not
    registered). `keys_dir` has the keys for migrations with TLS, where none are named. `reboot`: a reset by the
    guest starts it again; if False it ends the machine. `paused`: wait for ``resume`` before the first instruction.
    `powerdown_timeout_s` is how long a guest that was asked to power off may take. `assist`: stand in for KVM where
    it cannot emulate an instruction of the guest's kernel mode; "auto" does where the host needs it. `devices` are
    those without a field of their own. `incoming`: do not boot, but wait for a guest from another tvmm; with
    `paused` it stays paused when it is here. `display`: the guest has a screen. `vnc`: a server for viewers of it.
    `metrics`: an endpoint for Prometheus.
    """

    name: str = ""
    memory: MemoryConfig = MemoryConfig()
    cpu: CpuConfig = CpuConfig()
    kernel: KernelConfig = KernelConfig()
    serial: SerialConfig = SerialConfig()
    control: str = ""
    devices: tuple[DeviceConfig, ...] = ()
    reboot: bool = True
    paused: bool = False
    powerdown_timeout_s: float = 10.0
    assist: str = "auto"
    runtime_dir: str = ""
    keys_dir: str = ""
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    consoles: tuple[ConsoleConfig, ...] = ()
    rngs: tuple[RngConfig, ...] = ()
    incoming: IncomingConfig | None = None
    vnc: VncConfig | None = None
    display: DisplayConfig | None = None
    inputs: tuple[InputConfig, ...] = ()
    balloons: tuple[BalloonConfig, ...] = ()
    metrics: MetricsConfig | None = None
    vsocks: tuple[VsockConfig, ...] = ()

    @classmethod
    def parse(
        cls,
        *,
        name: str = "",
        memory: str | int = "256M",
        cpus: str | int = 1,
        cpu: str = "host",
        kernel: str | PathLike[str] = "",
        initrd: str | PathLike[str] = "",
        append: str = "",
        entry: str = "auto",
        decompress: str = "auto",
        serial: str = "none",
        control: str | PathLike[str] = "",
        disk: str | Sequence[str] = (),
        net: str | Sequence[str] = (),
        device: str | Sequence[str] = (),
        vnc: str = "none",
        vsock: str = "",
        display: str = "",
        metrics: str = "none",
        reboot: str | bool = True,
        paused: str | bool = False,
        powerdown_timeout: str | float = "10s",
        assist: str = "auto",
        runtime_dir: str | PathLike[str] = "",
        keys_dir: str | PathLike[str] = "",
        incoming: str = "",
        tls: str | bool = False,
        keys: str | PathLike[str] = "",
        pair: str | bool = False,
        insecure: str | bool = False,
    ) -> MachineConfig:
        """A machine from values spelled as on the command line, checked one by one and together.

        Raises `ConfigError` for a value that is wrong, and for values that do not go together.
        """
        return cls(
            name=name,
            memory=MemoryConfig.parse(memory),
            cpu=CpuConfig.parse(cpus, cpu),
            kernel=KernelConfig(str(kernel), str(initrd), append, entry, decompress),
            serial=SerialConfig.parse(serial),
            control=str(control),
            reboot=parse_bool(reboot, "reboot"),
            paused=parse_bool(paused, "paused"),
            powerdown_timeout_s=parse_duration(powerdown_timeout, "powerdown timeout"),
            assist=assist,
            runtime_dir=str(runtime_dir),
            keys_dir=str(keys_dir),
            incoming=_incoming(incoming, tls, str(keys), pair, insecure),
            vnc=_vnc(vnc),
            metrics=_metrics(metrics),
            **_hardware(disk, net, device, display or (), vsock or ()),
        ).check()

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> MachineConfig:
        """As `parse`, from a mapping. Raises `ConfigError` also for names that are no option."""
        for name in options:
            if name not in (*OPTION_NAMES, "runtime_dir", "keys_dir"):
                raise unknown_name("option", name, OPTION_NAMES)
        return cls.parse(**options)  # type: ignore[arg-type]

    def check(self) -> MachineConfig:
        """The same record with its devices' properties filled in. Raises `ConfigError` for no machine."""
        if self.name:
            check_name(self.name)
        self.memory.check()
        self.cpu.check()
        self.kernel.check().check_together()
        self.serial.check()
        choice_of(self.assist, "assist", ASSIST_CHOICES)
        if not 0 < self.powerdown_timeout_s <= POWERDOWN_LIMIT_S:
            raise ConfigError(
                f"powerdown timeout {self.powerdown_timeout_s:g}s is out of range",
                "it goes from above 0 to one day (24h)",
            )
        if len(self.control.encode("utf-8", "surrogateescape")) > UNIX_PATH_LIMIT:
            raise ConfigError(
                f"control path {self.control!r} is too long for a socket",
                f"{UNIX_PATH_LIMIT} bytes are the limit",
            )
        if "\0" in self.control + self.runtime_dir + self.keys_dir:
            raise ConfigError("control path holds a NUL character")
        if self.control and self.serial.kind == "unix" and self.control == self.serial.path:
            raise ConfigError(f"control and serial both want the socket {self.control!r}", "give them different paths")
        checked = self._replace(devices=tuple(device.check() for device in self.devices))
        if checked.devices:
            from tvmm.config.device import chosen_guid

            chosen_guid(checked.devices)
        if self.incoming is not None:
            checked = checked._replace(incoming=self._check_incoming(self.incoming))
        elif any(disk.copy for disk in self.disks):
            raise ConfigError(
                "disk property copy=on is for a machine that waits for a guest", "say --incoming, or leave it out"
            )
        if self.vnc is not None:
            self._check_vnc(self.vnc)
            if self.display is None:
                from tvmm.config.display import DisplayConfig

                # Viewers without anything to look at are of no use.
                checked = checked._replace(display=DisplayConfig(*(self.vnc.size or ())))
        if self.metrics is not None:
            self._check_metrics(self.metrics)
        if checked.display is not None:
            checked = checked._replace(display=checked.display.check())
        if not (self.disks or self.nets or self.consoles or self.rngs or self.inputs or self.balloons or self.vsocks):
            return checked
        from tvmm.config.virtio import check_virtio

        return check_virtio(checked)

    def _check_incoming(self, incoming: IncomingConfig) -> IncomingConfig:
        checked = incoming.check()
        serial = f"unix:{self.serial.path}" if self.serial.kind == "unix" else ""
        for what, uri in (("control", f"unix:{self.control}"), ("serial", serial)):
            if checked.uri == uri:
                raise ConfigError(
                    f"incoming and {what} both want the socket {uri[5:]!r}", "give them different paths"
                )
        return checked

    def _check_vnc(self, vnc: VncConfig) -> None:
        self._check_socket("vnc", vnc.check().address.path)

    def _check_metrics(self, metrics: MetricsConfig) -> None:
        path = metrics.check().address.path
        self._check_socket("metrics", path, vnc=self.vnc.address.path if self.vnc is not None else "")

    def _check_socket(self, name: str, path: str, **others: str) -> None:
        serial = self.serial.path if self.serial.kind == "unix" else ""
        incoming = self.incoming.uri.removeprefix("unix:") if self.incoming is not None else ""
        for what, other in {"control": self.control, "serial": serial, "incoming": incoming, **others}.items():
            if path and path == other:
                raise ConfigError(f"{name} and {what} both want the socket {path!r}", "give them different paths")


def _hardware(*options: str | Sequence[str]) -> dict[str, Any]:
    """The fields that ``--disk``, ``--net``, ``--device`` and ``--display`` fill, imported only if there are any."""
    if not any(options):
        return {}
    from tvmm.config.virtio import parse_hardware

    return parse_hardware(*((values,) if isinstance(values, str) else values for values in options))


def _incoming(uri: str, tls: str | bool, keys: str, pair: str | bool, insecure: str | bool) -> IncomingConfig | None:
    """The group that ``--incoming`` and its companions fill, imported only if it is there."""
    switches = {
        name: parse_bool(value, name) for name, value in (("tls", tls), ("pair", pair), ("insecure", insecure))
    }
    given = [name for name, value in {**switches, "keys": bool(keys)}.items() if value]
    if not uri:
        if given:
            raise ConfigError(f"{given[0]} has no meaning without incoming", "it says who may send a guest here")
        return None
    from tvmm.config.incoming import IncomingConfig

    return IncomingConfig(uri, keys=keys, **switches)


def _vnc(text: str) -> VncConfig | None:
    """The group that ``--vnc`` fills, imported only if it is there."""
    if text == "none":
        return None
    from tvmm.config.vnc import VncConfig

    config = VncConfig.parse(text)
    return None if config.address.kind == "none" else config


def _metrics(text: str) -> MetricsConfig | None:
    """The group that ``--metrics`` fills, imported only if it is there."""
    if text == "none":
        return None
    from tvmm.config.metrics import MetricsConfig

    config = MetricsConfig.parse(text)
    return None if config.address.kind == "none" else config

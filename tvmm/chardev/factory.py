"""From the `--serial` option to its backend. Each backend's module is imported only if it is the one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from tvmm.chardev.port import Actions, Backend
    from tvmm.config.serial import SerialConfig

__all__ = ["open_backend"]


def open_backend(config: SerialConfig, actions: Actions) -> Backend:
    """The backend that `config` names, for `async with`. Raises `ConfigError` for a kind that is none."""
    if config.kind == "stdio":
        from tvmm.chardev.stdio import StdioBackend

        return StdioBackend(actions, escape=config.escape)
    if config.kind == "none":
        from tvmm.chardev.none import NoneBackend

        return NoneBackend()
    if config.kind == "file":
        from tvmm.chardev.file import FileBackend

        return FileBackend(config.path, actions, append=config.append)
    if config.kind == "pty":
        from tvmm.chardev.pty import PtyBackend

        return PtyBackend(link=config.link)
    if config.kind == "unix":
        from tvmm.chardev.unix import UnixBackend

        return UnixBackend(config.path)
    if config.kind == "tcp":
        from tvmm.chardev.tcp import TcpBackend

        return TcpBackend(config.host, config.port)
    raise ConfigError(f"unknown serial kind {config.kind!r}")

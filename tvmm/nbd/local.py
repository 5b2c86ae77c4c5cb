"""`qemu-nbd` for one image in a format of its own (qcow2, vmdk ...), started and ended with the machine.

What keeps it from being left behind, however this process ends:

- Its socket has no name. It is made in a directory that exists for that long only, and connected to through its
  descriptor (`/proc/self/fd`); `qemu-nbd` gets the listening end as systemd would give it (LISTEN_FDS). So nobody else
  can connect either.
- It is not persistent: it ends by itself, with everything written, when the last connection is closed, and the kernel
  closes those of a process that is killed.
- Until the first handshake is done it would not; a shell beside it waits that long on a pipe and ends it if the pipe is
  closed without a word.

(PR_SET_PDEATHSIG is no way: it fires when the *thread* ends that made the process, and kills what has writes to do.)
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from contextlib import suppress
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.config.options import join_options
from tvmm.errors import HostError, ImageError, UserError, collapse
from tvmm.nbd.connect import CONNECT_SECONDS, Connection, connect, run_now

if TYPE_CHECKING:
    from tvmm.nbd.handshake import Export

__all__ = ["LocalImage", "LocalServer", "server_command"]

PROGRAM = "qemu-nbd"
WRAPPER = (
    "exec 3<&0 4<&1 </dev/null >/dev/null; "
    "{ read _ <&4 || kill -9 $$; } 3<&- 2>/dev/null & "
    'LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@" 4<&-'
)
"""Descriptor 0 is the listening socket and 1 the pipe; a process cannot say its number before it is there. `qemu-nbd`
misses a SIGTERM that comes while it starts; as nobody has written anything yet, nothing is lost by a SIGKILL."""
GRACE_SECONDS = 30.0
"""For what is still to be written when the machine ends; then it is told to end, and then made to."""
TERM_SECONDS = 5.0
STDERR_BYTES = 4096
BACKLOG = 128


class LocalImage(NamedTuple):
    """How an image is opened. `aio` '': as the server likes; `share`: although somebody else writes it."""

    path: str
    format: str
    read_only: bool = False
    direct: bool = False
    no_flush: bool = False
    aio: str = ""
    unmap: bool = True
    locking: bool = True
    connections: int = 1
    share: bool = False


def server_command(image: LocalImage, *, is_device: bool) -> list[str]:
    """The command line, without a socket."""
    options = {
        "driver": image.format,
        "discard": "unmap" if image.unmap and not image.read_only else "ignore",
        "cache.direct": _word(image.direct),
        "cache.no-flush": _word(image.no_flush),
        "file.driver": "host_device" if is_device else "file",
        "file.filename": image.path,
        "file.locking": "auto" if image.locking else "off",
    }
    if image.aio:
        options["file.aio"] = image.aio
    if image.share:
        options["force-share"] = "on"
    command = [PROGRAM, "--image-opts", "--shared", str(image.connections)]
    if image.read_only:
        command.append("--read-only")
    return [*command, join_options(options)]


def _word(on: bool) -> str:
    return "on" if on else "off"


class LocalServer:
    """A `Server` of our own, which runs from the first `connect` until `stop`, and again if it dies in between."""

    def __init__(self, image: LocalImage) -> None:
        """Raises `UserError` if there is no such image, or no `qemu-nbd`."""
        self.name = image.path
        self.image = image
        self._process: subprocess.Popen[bytes] | None = None
        self._life = -1
        self._listener: socket.socket | None = None
        self._place = -1
        self._said = ""
        self.crashed = False
        """It has ended otherwise than with its last connection, since somebody has set this to False."""
        try:
            self._is_device = stat.S_ISBLK(os.stat(image.path).st_mode)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageError(
                f"disk image {image.path} cannot be opened: {reason}",
                f"'qemu-img create -f {image.format} FILE 10G' makes an empty one",
            ) from error
        self._program = shutil.which(PROGRAM)
        if self._program is None:
            raise HostError(
                f"disk image {image.path} is {image.format}, which needs {PROGRAM}, and that is not installed",
                "'apt install qemu-utils' installs it; 'qemu-img convert -O raw' makes a raw image",
            )

    # -- Server --------------------------------------------------------------------------------------------

    async def connect(self) -> Connection:
        """See `Server`. Starts the process if it does not run."""
        try:
            with trio.fail_after(CONNECT_SECONDS):
                process = self._running()
                return await self._connect_to(process)
        except trio.TooSlowError:
            self._end(0)
            raise HostError(
                f"{PROGRAM} did not open disk image {self.name} within {CONNECT_SECONDS:g} s", "look at the host's disk"
            ) from None

    def look(self) -> Export:
        """What there is to know of the image, although somebody else may be writing it. Waits for that."""
        server = LocalServer(self.image._replace(read_only=True, share=True, connections=1))
        try:
            connection = run_now(server.connect)
            connection.close()
        finally:
            server.close()
        return connection.export

    def close(self) -> None:
        """See `Server`: all connections are closed; wait until it has written everything, and has ended."""
        self.stop()
        if self._listener is not None:
            self._listener.close()
            os.close(self._place)
            self._listener = None

    def stop(self) -> None:
        """As `close`, but `connect` starts it again."""
        self._end(GRACE_SECONDS)

    @property
    def pid(self) -> int:
        """Of the process, 0 without one."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    # -- the process ---------------------------------------------------------------------------------------

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end(0)
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        listener = self._listen()
        command = server_command(self.image, is_device=self._is_device)
        life, ours = os.pipe2(os.O_CLOEXEC)
        errors, theirs = os.pipe2(os.O_CLOEXEC)
        # One that says more than the pipe takes must not wait for anybody to read it.
        os.set_blocking(theirs, False)
        os.set_blocking(errors, False)
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", WRAPPER, PROGRAM, str(self._program), *command[1:]],
                stdin=listener.fileno(),
                stdout=life,
                stderr=theirs,
                # What is typed at the machine's terminal is not meant for it.
                start_new_session=True,
            )
        except OSError as error:
            os.close(ours)
            os.close(errors)
            raise HostError(f"{PROGRAM} cannot be started: {error.strerror}", "look at the host") from error
        finally:
            os.close(life)
            os.close(theirs)
        self._life, self._errors = ours, errors
        return process

    def _listen(self) -> socket.socket:
        """A listening socket that only this process can find."""
        if self._listener is None:
            folder = tempfile.mkdtemp(prefix="tvmm-nbd-")
            path = os.path.join(folder, "nbd")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(path)
                listener.listen(BACKLOG)
                self._place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                listener.close()
                raise HostError(f"no socket for {PROGRAM}: {error.strerror}", "look at the temporary files") from error
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                os.rmdir(folder)
            self._listener = listener
        return self._listener

    async def _connect_to(self, process: subprocess.Popen[bytes]) -> Connection:
        """A connection to it, or the reason for which it has ended."""
        found: list[Connection] = []
        try:
            with collapse():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_at_end, process, nursery.cancel_scope)
                    stream = await trio.open_unix_socket(f"/proc/self/fd/{self._place}")
                    found.append(await connect(stream, self.name, "", None, None))
                    nursery.cancel_scope.cancel()
        except OSError as error:
            raise HostError(f"no connection with {PROGRAM}: {error.strerror}", "look at the host") from error
        except UserError:
            # It may have ended, with the reason in its last words.
            if process.poll() is None:
                raise
        if not found:
            raise self._failed(process)
        self._says_it_lives()
        return found[0]

    def _says_it_lives(self) -> None:
        """From here on it ends with its connections."""
        if self._life >= 0:
            with suppress(BrokenPipeError):
                os.write(self._life, b"\n")
            os.close(self._life)
            self._life = -1

    def _failed(self, process: subprocess.Popen[bytes]) -> UserError:
        """Why it has ended."""
        if process is self._process:
            self._said = self._last_words()
            self._end(0)
        words, path = self._said, self.name
        if 'Failed to get "write" lock' in words or 'Failed to get "consistent read" lock' in words:
            return ImageError(
                f"disk image {path} is in use by another machine",
                "stop that one, or say locking=off",
            )
        if "Failed to get shared" in words:
            return ImageError(
                f"disk image {path} is in use by another machine (writing)", "stop that one, or say locking=off"
            )
        if "Permission denied" in words:
            return HostError(
                f"disk image {path} cannot be opened: Permission denied", "get the right to it, or say readonly=on"
            )
        reason = words.removeprefix(f"{PROGRAM}: ")
        # It names its image by all of the options.
        reason = reason.partition(f"'{server_command(self.image, is_device=self._is_device)[-1]}': ")[2] or reason
        return ImageError(
            f"{PROGRAM} cannot open disk image {path}: {reason or 'it says nothing'}",
            f"'qemu-img info {path}' says what it is; see format=",
        )

    def _last_words(self) -> str:
        try:
            text = os.read(self._errors, STDERR_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # Its first line has the error; what follows are hints.
        return "".join(char if char.isprintable() else "?" for char in lines[0][:300]) if lines else ""

    def _end(self, grace: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for seconds, signal in ((grace, 0), (TERM_SECONDS, SIGTERM), (TERM_SECONDS, SIGKILL)):
            if signal:
                process.send_signal(signal)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                break
        # Whoever comes first to see its end: connections of one that dies are closed before it is gone.
        self.crashed = self.crashed or process.returncode != 0
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        os.close(self._errors)


async def _cancel_at_end(process: subprocess.Popen[bytes], scope: trio.CancelScope) -> None:
    """Cancel when the process has ended."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        # Somebody has seen its end.
        scope.cancel()
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    scope.cancel()

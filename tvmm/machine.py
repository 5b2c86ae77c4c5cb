"""A running virtual machine: one nursery over its vCPU threads, its serial line, its clock and its control socket.

::

    async with Machine(MachineConfig.parse(memory="256M", cpus=2)) as vm:
        await vm.resume()
        await vm.wait_serial("tvmm> ")
        await vm.send_serial("poweroff\\n")
        outcome = await vm.wait()

The machine is paused when the block is entered, and gone, with every thread, descriptor and file, when it is left.
Cancelling the scope around it does the same within milliseconds, whatever the guest is doing. Nothing here is global:
machines in one process do not know of one another.
"""

from __future__ import annotations

import math
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from tvmm.board import Board, GuestRequest
from tvmm.chardev.expect import Expect
from tvmm.chardev.factory import open_backend
from tvmm.chardev.guest_end import SerialEnd
from tvmm.chardev.port import SerialHub
from tvmm.clock import DeviceClock
from tvmm.config.machine import MachineConfig
from tvmm.control.prompt import MachineActions
from tvmm.errors import UserError, collapse
from tvmm.kvm.prompt import prompt_thread
from tvmm.machine_tasks import start_tasks, wind_down
from tvmm.moves import Moves
from tvmm.outcome import SHUTDOWN_REASONS, Outcome
from tvmm.run_control import RunControl
from tvmm.saves import Saves
from tvmm.supervisor import Supervisor
from tvmm.tasks import TaskMeter
from tvmm.vcpu.dispatch import ExitDispatcher
from tvmm.vcpu.thread import Vcpu

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from re import Pattern
    from types import TracebackType

    from tvmm.chardev.port import Backend
    from tvmm.control.registry import MachinePaths
    from tvmm.control.target import VirtioDevices
    from tvmm.control.vnc_target import VncTarget
    from tvmm.memory.ram import GuestRam
    from tvmm.migration.status import MigrationParameters, MigrationStatus
    from tvmm.snapshot.status import SaveParameters, SaveStatus
    from tvmm.vnc.server import ScreenLike, VncServer
    from tvmm.wiring.metrics import MachineMetrics

__all__ = ["Machine"]

CONTROL_GRACE_SECONDS = 0.1
"""How long the control server's modules may wait to be imported for the guest to say its first word."""


class Machine:
    """One virtual machine. Use it once, in an `async with` block; see the module's text."""

    def __init__(self, config: MachineConfig | None = None, *, board: Board | None = None) -> None:
        """`board` is for a caller that has had it made in advance; the machine closes it."""
        self.config = (config or MachineConfig()).check()
        self.name = self.config.name
        self.outcome: Outcome | None = None
        self.farewell: Outcome | None = None
        """How it will end: the guest has moved, and viewers or control clients are waited for."""
        self.backend_path = ""
        self.listeners: list[Callable[[str, dict[str, object]], None]] = []
        """Called with name and data of each QMP event."""
        self.reset_listeners: list[Callable[[], None]] = []
        """Called when RAM has been zeroed, and the kernel loaded anew, by a reset."""
        self.on_warning: Callable[[str], None] = lambda message: None
        self.moves = Moves(self)
        self.saves = Saves(self)
        self.nursery: trio.Nursery
        self.control_clients: Callable[[], int] = lambda: 0
        """How many are connected to its sockets."""
        self.before_resume: Callable[[], None] = lambda: None
        """Called when the user lets a machine go on; raises `UserError` if it cannot."""
        self.virtio: VirtioDevices | None = None  # set with the board, if there are any
        self.screen: ScreenLike | None = None  # set with its tasks, if there is a display
        self.relayed: VncServer | None = None
        """For viewers that came with the guest to a machine that has no server of its own."""
        self.viewers: VncTarget | None = None  # set with its tasks, if there is a server for them
        self.board: Board
        """The hardware; there is none before the block is entered."""
        self._prepared = board
        self._ended = trio.Event()
        self.settled = trio.Event()
        """The guest may run, or the end is waited for: all that can be set before has been set."""
        self.control_ready = trio.Event()
        self.control_grace_s = CONTROL_GRACE_SECONDS
        self.supervisor = Supervisor(self)
        self._metrics: MachineMetrics | None = None
        self.made_at = time.time()
        """In Unix time."""

    # --- life ---

    async def __aenter__(self) -> Machine:
        self._life = self._lifetime()
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._life.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _lifetime(self) -> AsyncIterator[None]:
        if self._prepared is not None:
            self.board = self._prepared
        else:
            self.board = await trio.to_thread.run_sync(self._make_board)
        try:
            self._wire()
            with collapse():
                async with AsyncExitStack() as stack:
                    stack.enter_context(prompt_thread())
                    paths = await self._register(stack)
                    actions = MachineActions(self)
                    backend = await stack.enter_async_context(open_backend(self.config.serial, actions))
                    self.nursery = await stack.enter_async_context(trio.open_nursery())
                    self.meter = stack.enter_context(TaskMeter(self.nursery))
                    self._connect_serial(backend, stack)
                    await start_tasks(self, actions, stack, paths)
                    try:
                        yield
                        await wind_down(self)
                    finally:
                        self.nursery.cancel_scope.cancel()
        finally:
            # The kernel takes milliseconds to destroy a VM: not on the event loop, and not to be cut short.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.board.close)

    def _make_board(self) -> Board:
        return Board(self.config, load=self.config.incoming is None)

    def _wire(self) -> None:
        """Join board, vCPUs and this machine."""
        self.token = trio.lowlevel.current_trio_token()
        board, config = self.board, self.config
        assist = config.assist == "on" or (config.assist == "auto" and board.emulated_kernel)
        self.exits = ExitDispatcher(board.ports, board.mmio, board.bus_lock, board.ram, assist=assist)
        self.exits.on_crash = self.supervisor.crashed
        self.exits.on_system_event = lambda kind: self.supervisor.from_guest(GuestRequest(kind))
        board.on_request = self.supervisor.from_guest
        self.clock = DeviceClock(board)
        if board.devices is not None:
            from tvmm.wiring.view import DeviceView

            self.virtio = DeviceView(board.devices)
            board.devices.on_warning = lambda message: self.token.run_sync_soon(self.on_warning, message)
            board.devices.on_event = lambda *event: self.token.run_sync_soon(self._device_event, *event)
        self.vcpus = [Vcpu(kvm, self.exits) for kvm in board.vcpus]
        self.motion = RunControl(
            self.vcpus, board.devices, lambda event: self.tell(event, {}), board.serial.go_on
        )
        self.serial_end = SerialEnd(board.serial)

    def _connect_serial(self, backend: Backend, stack: AsyncExitStack) -> None:
        """The serial line to what the user chose for it, and to those who follow it here."""
        self.backend_path = backend.path
        self.hub = SerialHub(self.serial_end, backend)
        self.board.serial.queued_input = lambda: self.serial_end.unsent + self.hub.queued_input()
        self.board.serial.put_back_input = self.hub.put_back_input
        self._expect = Expect(stack.enter_context(self.hub.follow(holding=False)))

    async def _register(self, stack: AsyncExitStack) -> MachinePaths | None:
        """Take the machine's name in the runtime directory, if it is to be found there."""
        if not self.config.runtime_dir:
            return None
        from pathlib import Path

        from tvmm.control.registered import registered

        return await stack.enter_async_context(registered(Path(self.config.runtime_dir), self.name))

    async def hold_for_good(self) -> None:
        """Return when no vCPU runs, even if one waits for a page that nobody brings.

        The kernel waits for some pages, such as the guest's page tables, in a way that only a fatal signal ends.
        """
        if self.moves.pause_seconds < math.inf:
            # What is cancelled below is not to let the others go on.
            self.motion.end()
        await self.hold_without_memory()

    async def hold_without_memory(self) -> None:
        """The same for a guest that needs its memory no more, and may be started anew."""
        with trio.move_on_after(self.moves.pause_seconds) as patience:
            await self.motion.hold()
        if patience.cancelled_caught:
            self.motion.hold_now()
            self.let_go_of_missing()
            await self.motion.hold()

    def let_go_of_missing(self) -> None:
        """Nobody waits any more for pages that have not come; disks take nothing that was made of them."""
        if self.board.ram.let_go is not None:
            self.board.ram.let_go()

    async def vsock(self, port: int) -> trio.SocketStream:
        """A stream to what the guest has at `port` of its vsock. Raises `UserError` if nobody listens there."""
        devices = self.board.devices
        if devices is None or devices.vsock is None:
            raise UserError("the machine has no vsock", "give it vsock=PATH")
        return await devices.vsock.dial(port)

    def start_task(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        """Beside the others, until it or the machine ends."""
        self.nursery.start_soon(run, name=name)

    def guest_has_arrived(self) -> None:
        """The guest that was waited for is here."""
        self.board.release_keys()
        self.settled.set()
        self.moves.arrived.set()

    # --- run state ---

    async def resume(self) -> None:
        """Let the guest run. Raises `UserError` when the machine has ended."""
        async with self.motion.lock:
            if self.outcome is not None:
                raise UserError(f"the machine has ended ({self.outcome.kind})", "start it anew with 'tvmm run'")
            self._refuse_without_guest()
            self.settled.set()
            self.before_resume()
            self.before_resume = lambda: None
            self.motion.start()

    async def pause(self) -> None:
        """Return when no vCPU runs, no access of one is half done, and no device touches memory.

        Raises `UserError`, and the machine runs on, if a device waits for a page that is on the other side.
        """
        async with self.motion.lock:
            with trio.move_on_after(self.moves.pause_seconds) as patience:
                await self.motion.stop()
        if patience.cancelled_caught:
            raise UserError(
                "a vCPU or a device waits for memory that is still to come: the guest cannot be paused before",
                "'tvmm migrate --recover' at the source goes on; 'tvmm stop --force' ends this machine",
            )

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Paused within the block, and after it as before."""
        was_running = self.motion.running
        await self.pause()
        try:
            yield
        finally:
            if was_running:
                async with self.motion.lock:
                    # What the guest did on its way into the pause may have ended it.
                    if self.outcome is None:
                        self.motion.start()

    def _refuse_without_guest(self) -> None:
        if self.farewell is not None:
            raise UserError(f"the guest has moved to {self.farewell.report}")
        if self.motion.stage == "inmigrate":
            raise UserError("the machine waits for a guest that 'tvmm migrate' sends", "it runs when that is here")

    async def run(self) -> Outcome:
        """`resume`, and `wait` for the end. A machine that waits for a guest runs when that has arrived."""
        if self.config.incoming is None:
            await self.resume()
        return await self.wait()

    async def wait_arrival(self) -> None:
        """Until the guest that this machine was made for (`incoming`) is here."""
        await self.moves.arrived.wait()

    async def migrate(self, uri: str, parameters: MigrationParameters | None = None) -> MigrationStatus:
        """Move the guest to a machine that waits at `uri` (``tcp:HOST:PORT``, ``unix:PATH``), and return how it went.

        Raises `UserError` if it did not: then the guest is here as before, unless the error says otherwise.
        """
        return await self.moves.migrate(uri, parameters)

    async def save(self, path: str, parameters: SaveParameters | None = None) -> SaveStatus:
        """Write the guest into a snapshot file at `path`, and return how it went; the guest goes on afterwards.

        Raises `UserError` if it could not be: then the guest goes on, and what was at `path` is there still.
        """
        return await self.saves.save(path, parameters)

    async def wait(self) -> Outcome:
        """Until the machine has ended: powered off, crashed, quit."""
        self.settled.set()
        await self._ended.wait()
        assert self.outcome is not None
        return self.outcome

    async def reset(self) -> None:
        """Pull the reset line: all hardware as after power-on, the kernel loaded anew."""
        self._refuse_without_guest()
        if self.motion.stage == "postmigrate":
            # Its memory may be wanted at the destination.
            self.moves.refuse_if_incomplete("reset here")
        async with self.motion.lock:
            await self.hold_without_memory()
            await self.reset_board()
        self.tell("RESET", {"guest": False, "reason": "host-qmp-system-reset"})

    def powerdown(self) -> None:
        """Press the power button; the guest may or may not heed it. Raises `UserError` if it cannot: it is paused, or
        not here yet.
        """
        if self.farewell is not None:
            raise UserError(f"the guest has moved to {self.farewell.report}")
        if self.motion.stage == "inmigrate":
            raise UserError("the machine waits for a guest and has none to power off", "'tvmm stop' ends it")
        if not self.motion.running:
            raise UserError("a paused guest does not notice its power button", "resume it first")
        with self.board.bus_lock:
            self.board.pm.press_power_button()
        self.tell("POWERDOWN", {})

    def keeps_another_alive(self) -> bool:
        """Whether the guest runs elsewhere and would die there with this machine, which has some of its memory."""
        return self.moves.lends_memory

    def quit(self) -> None:
        """End the machine now, whatever the guest does."""
        self.supervisor.post(self.farewell or Outcome("quit"))

    async def shutdown(self) -> Outcome:
        """Press the power button, give the guest `powerdown_timeout_s` to heed it, then quit."""
        self.powerdown()
        with trio.move_on_after(self.config.powerdown_timeout_s):
            return await self.wait()
        self.quit()
        return await self.wait()

    def run_state(self) -> str:
        """A word of QEMU's RunState."""
        if self.outcome is not None:
            return "internal-error" if self.outcome.kind == "crashed" else "shutdown"
        return self.motion.state

    # --- for the supervisor ---

    async def reset_board(self) -> None:
        """With the transition lock held and no vCPU running."""
        # First: a request that waits for a page would keep its device.
        self.let_go_of_missing()
        if self.board.devices is not None:
            await self.board.devices.stop()
        await trio.to_thread.run_sync(self.board.reset)
        for listener in self.reset_listeners:
            listener()
        self.supervisor.begin_life()
        self.motion.release()

    def _device_event(self, name: str, data: dict[str, object], stop: str) -> None:
        """A device's QMP event; with `stop`, a word of RunState, it cannot go on without the user."""
        self.tell(name, data)
        if stop:
            self.supervisor.post(GuestRequest(stop))

    def tell(self, name: str, data: dict[str, object]) -> None:
        for listener in self.listeners:
            listener(name, data)

    def end(self, outcome: Outcome) -> None:
        """For the supervisor: this is how it ended. No vCPU runs."""
        self.outcome = outcome
        self.motion.end()
        self.serial_end.finish()
        self._ended.set()
        if outcome.kind == "crashed":
            self.tell("GUEST_PANICKED", {"action": "shutdown"})
        reason = SHUTDOWN_REASONS[outcome.kind]
        self.tell("SHUTDOWN", {"guest": reason.startswith("guest-"), "reason": reason})

    def metrics(self) -> MachineMetrics:
        """Everything that is counted; `read` reads it."""
        if self._metrics is None:
            from tvmm.wiring.metrics import MachineMetrics

            self._metrics = MachineMetrics(self)
        return self._metrics

    async def inspect(self, look: Callable[[], T]) -> T:
        """What `look` returns while no vCPU runs; the guest goes on afterwards as if nothing had been."""
        async with self.motion.lock:
            await self.motion.hold()
            try:
                return look()
            finally:
                # What the guest has asked for comes before anything else that it does.
                if not self.supervisor.vcpus_wait:
                    self.motion.release()

    # --- serial line and memory ---

    async def send_serial(self, data: str | bytes) -> None:
        """Type `data` at the serial line."""
        await self.hub.send(data.encode() if isinstance(data, str) else data)

    async def wait_serial(self, pattern: str | bytes | Pattern[bytes]) -> bytes:
        """The serial output from where the last call stopped up to the end of the first match of `pattern`.

        A str or bytes is looked for as it is, a compiled pattern of bytes as a regular expression. Raises `GuestError`
        when the output ends, or 1 MiB goes by, without a match.
        """
        return await self._expect.wait(pattern)

    @property
    def memory(self) -> GuestRam:
        """Guest-physical memory: `read(gpa, length)` and `write(gpa, data)`."""
        return self.board.ram

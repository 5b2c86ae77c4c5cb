"""A vCPU's thread: KVM_RUN, exits to devices, and the hand-shake with the task that supervises it.

The thread comes from `trio.to_thread.run_sync` and lives as long as the machine. What it should do is one variable,
`_wanted`, changed under a lock by any thread and followed by a kick; what it does is `state`, changed by the thread
alone. KVM completes a pending port or memory access at the next KVM_RUN even if that leaves at once, so a pause that
is acknowledged after KVM_RUN returned EINTR has nothing half done in it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import trio

from tvmm.kvm.vcpu import (
    FAILED,
    KICK,
    MMIO_READ,
    MMIO_WRITE,
    OTHER,
    PIO_IN,
    PIO_STRING,
    KvmVcpu,
    step,
)
from tvmm.vcpu.registers import Registers, read_registers, write_registers
from tvmm.vcpu.runstate import RunEvent, RunState, after

if TYPE_CHECKING:
    from tvmm.bus import MmioBus, PortBus
    from tvmm.kvm.bus_lock import BusLock

__all__ = ["Exits", "Vcpu"]


class Exits(Protocol):
    """What a vCPU meets when it leaves the guest: buses, their lock, and somebody who decides about the rest."""

    ports: PortBus
    mmio: MmioBus
    bus_lock: BusLock

    def unusual_exit(self, vcpu: Vcpu, reason: int) -> bool:
        """An exit that is no access to a device, on the vCPU's thread. True: run on. False: stay paused."""

    def run_failed(self, vcpu: Vcpu, error: int) -> None:
        """KVM_RUN failed with errno `error`; the vCPU stays paused."""


class Vcpu:
    """One vCPU of a machine. Methods without `async` may be called from any thread."""

    def __init__(self, kvm: KvmVcpu, board: Exits) -> None:
        self.kvm = kvm
        kvm.set_bus(board.bus_lock)
        self.index = kvm.index
        self.state = RunState.PAUSED
        self.pauses = 0
        """How often it was stopped."""
        self.thread_ident: int | None = None
        self.native_id: int | None = None
        self._board = board
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._wanted = RunState.PAUSED
        self._held_by: Any = None
        self._nap_until = 0.0
        self._changed: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        self._token: trio.lowlevel.TrioToken | None = None

    # --- the supervising task ---

    async def run(self, limiter: trio.CapacityLimiter) -> None:
        """Run the thread until `FINISH`; cancelling this finishes the vCPU and waits for its thread."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._finish_when_cancelled, name=f"vcpu/{self.index} canceller")
            await trio.to_thread.run_sync(self._thread_main, abandon_on_cancel=False, limiter=limiter)
            nursery.cancel_scope.cancel()

    async def _finish_when_cancelled(self) -> None:
        """Turns cancellation, which cannot reach a thread, into an event that can."""
        try:
            await trio.sleep_forever()
        finally:
            self.request(RunEvent.FINISH)

    async def wait_not_running(self) -> None:
        """Until the thread has acknowledged a pause, or finished."""
        while self.state is RunState.RUNNING:
            await self._changed.park()

    def request(self, event: RunEvent) -> None:
        """Ask for a run state. Raises `RuntimeError` for what the run state table does not allow."""
        with self._lock:
            self._want(after(self._wanted, event))

    def hold(self) -> None:
        """Ask for a pause, unless the vCPU is finished or about to be: then there is nothing to pause."""
        with self._lock:
            if self._wanted is RunState.FINISHED:
                return
            self._want(after(self._wanted, RunEvent.PAUSE))

    def release(self) -> None:
        """Undo `hold`, unless the vCPU is finished or about to be: then its machine is on the way out."""
        with self._lock:
            if self._wanted is RunState.FINISHED:
                return
            self._want(after(self._wanted, RunEvent.RESUME))

    def nap(self, seconds: float) -> None:
        """Keep the guest out for so long, unless it is to be paused meanwhile: a brake for one that writes too fast."""
        with self._lock:
            if self._wanted is RunState.RUNNING:
                self._nap_until = time.monotonic() + seconds
                self.kvm.kick()

    def _want(self, state: RunState) -> None:
        """With the lock held. The kick comes before the wake-up, so that a thread that waits for a device does not
        enter the guest once more."""
        self._wanted = state
        if state is not RunState.RUNNING:
            self.kvm.kick()
        self._wake.set()

    @property
    def registers(self) -> Registers:
        """General registers. Raises `RuntimeError` unless paused."""
        self._check_paused()
        return read_registers(self.kvm)

    @registers.setter
    def registers(self, registers: Registers) -> None:
        self._check_paused()
        write_registers(self.kvm, registers)

    def _check_paused(self) -> None:
        if self.state is RunState.RUNNING:
            raise RuntimeError(f"vCPU {self.index} is running: pause the machine first")

    # --- the thread ---

    def _thread_main(self) -> None:
        kvm = self.kvm
        kvm.enter_thread()
        self.thread_ident, self.native_id = threading.get_ident(), threading.get_native_id()
        try:
            if self._obey():
                self._loop()
        finally:
            kvm.release_bus()
            kvm.leave_thread()
            self.thread_ident = self.native_id = None
            self._set_state(RunState.FINISHED)

    def _set_state(self, state: RunState) -> None:
        if self.state is state:
            return
        self.state = state
        self.pauses += state is RunState.PAUSED
        assert self._token is not None
        self._token.run_sync_soon(self._changed.unpark_all, idempotent=True)

    def _obey(self) -> bool:
        """Be in the state that is wanted. True once that is Running, False when it is Finished."""
        self.kvm.unkick()
        while True:
            with self._lock:
                wanted = self._wanted
                self._wake.clear()
                # Under the lock: whoever changes what is wanted finds a state that is not older than that.
                if wanted is not RunState.FINISHED:
                    self._set_state(wanted)
            if wanted is RunState.FINISHED:
                return False
            nap = self._nap_until - time.monotonic() if self._nap_until else 0.0
            if wanted is not RunState.RUNNING:
                self._wake.wait()
            elif nap > 0:
                self._wake.wait(nap)
            else:
                self._nap_until = 0.0
                return True

    def _loop(self) -> None:
        """Run the guest until finished.

        The hot path. After an exit the caches hold the kernel's code and not the interpreter's, so what counts is how
        little is touched: local names, one table look-up for a port access, no numbers to take apart, and the bus lock
        held already when a step returns an access.
        """
        board = self._board
        write_to, read_from = board.ports.writes.get, board.ports.reads.get
        run, raw = step, self.kvm.raw
        response = 0
        while True:
            code = run(raw, response)
            entry = write_to(code)
            if entry is not None:
                write, offset, size = entry
                hold = write(offset, size, raw.data)
                if hold is not None:
                    self._wait_for(hold)
                continue
            found = read_from(code)
            if found is not None:
                read, offset, size = found
                response = read(offset, size)
            elif code == KICK:
                if not self._obey():
                    return
                if self._held_by is not None:
                    self._wait_for(self._held_by)
            elif code < KICK:
                response = board.ports.unclaimed(code & PIO_IN)
            elif code & 0xFF == MMIO_READ & 0xFF:
                response = board.mmio.read(raw.address, code >> 8 & 0xFF)
            elif code & 0xFF == MMIO_WRITE & 0xFF:
                hold = board.mmio.write(raw.address, code >> 8 & 0xFF, raw.data)
                if hold is not None:
                    self._wait_for(hold)
            elif not self._unusual(code, raw.data):
                return

    def _unusual(self, kind: int, detail: int) -> bool:
        """String I/O and everything that is no device access. False: the vCPU is finished."""
        if kind == PIO_STRING:
            self._string_io()
            return True
        if kind == OTHER and self._board.unusual_exit(self, detail):
            return True
        if kind == FAILED:
            self._board.run_failed(self, detail)
        self.hold()
        return self._obey()

    def _string_io(self) -> None:
        """REP INS or OUTS: element by element, as a loop of the guest would."""
        data, size, port, is_in = self.kvm.string_io()
        ports = self._board.ports
        for start in range(0, len(data), size):
            hold: Any = None
            with self._board.bus_lock:
                if is_in:
                    data[start : start + size] = ports.read(port, size).to_bytes(size, "little")
                else:
                    hold = ports.write(port, size, int.from_bytes(data[start : start + size], "little"))
            if hold is not None:
                self._wait_for(hold)

    def _wait_for(self, hold: Any) -> None:
        """A device is full: keep the guest here until it has room.

        If somebody wants this vCPU elsewhere it goes, and waits on when it is to run again.
        """
        self.kvm.release_bus()
        self._held_by = hold
        while True:
            with self._lock:
                if self._wanted is not RunState.RUNNING:
                    return
                self._wake.clear()
            if not hold.call_when_ready(self._wake.set):
                self._held_by = None
                return
            self._wake.wait()

"""The table of instructions, and the one step: decode, look up, carry out.

Vector instructions come in runs: kernel code that uses them at all uses many. To leave KVM for each would cost
more than the instruction itself, so behind a vector instruction the following ones are carried out as well, up to
the first that is none.

A row's key reads like the SDM's opcode column: mandatory prefix (`np` none, `66`, `f3`, `f2`, with
`vex.` before it for the VEX form), opcode map (`0f`, `0f38`, `0f3a`; absent for one-byte opcodes),
opcode; then, where they matter, `/n` the ModRM reg field, `mem` or `reg` the kind of the r/m operand,
`rmN` a register operand with that number.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import MemoryAccessError
from tvmm.vcpu.assist import integer, system, vector, vector_move, x87, xsave
from tvmm.vcpu.assist.cpu import INVALID_OPCODE, TF, GuestException
from tvmm.vcpu.assist.decode import MAX_LENGTH, DecodeError, Truncated, decode
from tvmm.vcpu.assist.operation import ExtendedState, Operation, Unsupported, long_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvmm.vcpu.assist.cpu import AssistCpu
    from tvmm.vcpu.assist.decode import Instruction

    Handler = Callable[[Operation], None]
    Key = tuple[bool, int, int, int]

__all__ = ["TABLE", "Row", "emulate", "look_up"]

PAGE = 4096

_PREFIXES = {"np": 0, "66": 1, "f3": 2, "f2": 3}
_MAPS = {"0f": 1, "0f38": 2, "0f3a": 3}


RUN_LIMIT = 256
"""Instructions in one run: a guest that loops in vector code must not keep its vCPU from being paused."""

_DECODED = 2048
"""Instructions kept decoded; what a guest executes is its own choice, so there is a limit."""


class Row(NamedTuple):
    """One form of an instruction: what its ModRM must be (None: anything), its name and what it does.

    `vector` tells those that a run may consist of.
    """

    field: int | None
    in_memory: bool | None
    register: int | None
    name: str
    handler: Handler
    vector: bool


def _build(sources: tuple[Mapping[str, tuple[str, Handler]], ...]) -> dict[Key, list[Row]]:
    table: dict[Key, list[Row]] = {}
    for source in sources:
        is_vector = source is vector.ROWS or source is vector_move.ROWS
        for text, (name, handler) in source.items():
            prefix, *rest = text.split()
            vex = prefix.startswith("vex.")
            number = _MAPS.get(rest[0], 0)
            opcode, *forms = rest[1:] if number else rest
            field = in_memory = register = None
            for form in forms:
                if form.startswith("/"):
                    field = int(form[1:])
                elif form.startswith("rm"):
                    register = int(form[2:])
                else:
                    in_memory = form == "mem"
            key = (vex, number, int(opcode, 16), _PREFIXES[prefix.removeprefix("vex.")])
            table.setdefault(key, []).append(Row(field, in_memory, register, name, handler, is_vector))
    return table


TABLE = _build((system.ROWS, integer.ROWS, x87.ROWS, xsave.ROWS, vector.ROWS, vector_move.ROWS))


def look_up(insn: Instruction) -> Row | None:
    """The row of a decoded instruction."""
    for row in TABLE.get((insn.vex, insn.map, insn.opcode, insn.prefix), ()):
        if row.field is not None and row.field != insn.reg & 7:
            continue
        if row.in_memory is not None and row.in_memory != (insn.memory is not None):
            continue
        if row.register is not None and (insn.memory is not None or row.register != insn.rm & 7):
            continue
        return row
    return None


_decode = lru_cache(_DECODED)(decode)


def emulate(cpu: AssistCpu, code: bytes) -> str | None:
    """Carry out the instruction at RIP and return its name, or None, with nothing changed, if it is not known.

    Bytes missing from `code` are read from memory. Raises `GuestException` for what the instruction raises, and
    `MemoryAccessError` for operands that are not in RAM. A vector instruction is followed by those behind it.
    """
    wide = long_mode(cpu.sregs)
    if not wide and not cpu.sregs.cs.db:
        return None
    code = code[:MAX_LENGTH]
    while True:
        try:
            insn = _decode(code, wide)
            break
        except Truncated:
            code += cpu.read_linear(_linear_rip(cpu, wide) + len(code), 1)
        except DecodeError:
            return None
    row = look_up(insn)
    if row is None:
        return None
    extended = ExtendedState(cpu)
    if not _carry_out(cpu, insn, row, extended):
        return None
    if row.vector and not cpu.regs.rflags & TF:
        _run_on(cpu, wide, extended)
    extended.write_back()
    return row.name


def _linear_rip(cpu: AssistCpu, wide: bool) -> int:
    return cpu.regs.rip if wide else cpu.regs.rip + cpu.sregs.cs.base & 0xFFFF_FFFF


def _carry_out(cpu: AssistCpu, insn: Instruction, row: Row, extended: ExtendedState) -> bool:
    """Do it. False, with nothing changed, for a form that is not covered."""
    if insn.lock and row.name != "cmpxchg16b":
        raise GuestException(INVALID_OPCODE)
    operation = Operation(cpu, insn, extended)
    try:
        row.handler(operation)
    except Unsupported:
        return False
    operation.finish()
    return True


def _run_on(cpu: AssistCpu, wide: bool, extended: ExtendedState) -> None:
    """The vector instructions from RIP on, as far as they lie on this page and raise nothing.

    One that does raise has changed nothing, and does so again when KVM gets to it.
    """
    start = _linear_rip(cpu, wide)
    try:
        code = cpu.read_linear(start, PAGE - start % PAGE, user=cpu.sregs.cs.dpl == 3)
        for _ in range(RUN_LIMIT):
            offset = _linear_rip(cpu, wide) - start
            insn = _decode(code[offset : offset + MAX_LENGTH], wide)
            row = look_up(insn)
            if row is None or not row.vector or not _carry_out(cpu, insn, row, extended):
                return
    except (DecodeError, GuestException, MemoryAccessError):
        return

"""Run a static Linux program for aarch64 on any machine, as far as tests/cpu_driver needs it.

    run_aarch64.py PROGRAM ARGUMENT...

Unicorn executes the instructions; the few system calls that such a program makes are answered here, any other ends it
with exit code 70. Prints what the program prints; its exit code is this one's.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from unicorn import UC_ARCH_ARM64, UC_HOOK_INTR, UC_MODE_ARM, Uc
from unicorn.arm64_const import (
    UC_ARM64_REG_CPACR_EL1,
    UC_ARM64_REG_PC,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_X0,
    UC_ARM64_REG_X1,
    UC_ARM64_REG_X2,
    UC_ARM64_REG_X8,
)

PAGE, STACK, STACK_SIZE, MAPPED = 4096, 0x7F0000000000, 8 << 20, 0x7E0000000000
# Linux on aarch64 (include/uapi/asm-generic/unistd.h)
IOCTL, WRITE, WRITEV, EXIT, EXIT_GROUP, SET_TID_ADDRESS = 29, 64, 66, 93, 94, 96
GETTID, MUNMAP, MMAP, MPROTECT, MADVISE = 178, 215, 222, 226, 233
ENOTTY = 25
AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_RANDOM = 0, 3, 4, 5, 6, 25
PT_LOAD, EM_AARCH64 = 1, 183


class Program:
    def __init__(self, file: Path, arguments: list[str]) -> None:
        self.cpu = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.cpu.reg_write(UC_ARM64_REG_CPACR_EL1, 3 << 20)  # floating point and vectors do not trap
        self.code, self.mapped = 70, MAPPED
        self.entry, headers = self._load(file.read_bytes())
        self._stack([str(file), *arguments], headers)
        self.cpu.hook_add(UC_HOOK_INTR, self._call)

    def _load(self, image: bytes) -> tuple[int, dict[int, int]]:
        """Maps the segments. Returns (the first instruction, what a program is told of its headers)."""
        if image[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", image, 18)[0] != EM_AARCH64:
            raise ValueError("not a 64-bit ELF program for aarch64")
        entry, at = struct.unpack_from("<QQ", image, 24)
        size, count = struct.unpack_from("<HH", image, 54)
        mapped, first = set(), 0
        for i in range(count):
            kind, _, offset, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", image, at + i * size)
            if kind != PT_LOAD:
                continue
            pages = set(range(address // PAGE, (address + in_memory - 1) // PAGE + 1)) - mapped
            for page in sorted(pages):
                if page - 1 not in pages:
                    end = page
                    while end + 1 in pages:
                        end += 1
                    self.cpu.mem_map(page * PAGE, (end + 1 - page) * PAGE)
            mapped |= pages
            self.cpu.mem_write(address, image[offset:offset + in_file])
            if offset == 0:
                first = address
        return entry, {AT_PHDR: first + at, AT_PHENT: size, AT_PHNUM: count, AT_PAGESZ: PAGE}

    def _stack(self, arguments: list[str], told: dict[int, int]) -> None:
        self.cpu.mem_map(STACK - STACK_SIZE, STACK_SIZE)
        at, places = STACK - 64, []
        self.cpu.mem_write(at, b"sixteen bytes...")  # AT_RANDOM
        told = {**told, AT_RANDOM: at}
        for text in arguments:
            data = text.encode() + b"\0"
            at -= len(data)
            self.cpu.mem_write(at, data)
            places.append(at)
        words = [len(places), *places, 0, 0]  # no environment
        for key, value in {**told, AT_NULL: 0}.items():
            words += [key, value]
        at = (at - len(words) * 8) // 16 * 16
        self.cpu.mem_write(at, struct.pack(f"<{len(words)}Q", *words))
        self.cpu.reg_write(UC_ARM64_REG_SP, at)

    def _call(self, cpu: Uc, number: int, _: object) -> None:
        call, *given = (cpu.reg_read(r) for r in (UC_ARM64_REG_X8, UC_ARM64_REG_X0, UC_ARM64_REG_X1, UC_ARM64_REG_X2))
        if number != 2:  # not SVC
            print(f"exception {number} at {cpu.reg_read(UC_ARM64_REG_PC):#x}", file=sys.stderr)
            cpu.emu_stop()
        elif call in (EXIT, EXIT_GROUP):
            self.code = given[0] & 255
            cpu.emu_stop()
        elif call in (WRITE, WRITEV):
            parts = [(given[1], given[2])] if call == WRITE else [
                struct.unpack("<QQ", cpu.mem_read(given[1] + 16 * i, 16)) for i in range(given[2])]
            text = b"".join(bytes(cpu.mem_read(at, size)) for at, size in parts if size)
            out = {1: sys.stdout, 2: sys.stderr}[given[0]]
            out.write(text.decode())
            out.flush()
            cpu.reg_write(UC_ARM64_REG_X0, len(text))
        elif call == MMAP:  # of no file, wherever it may be: all that a heap asks for
            size = -(-given[1] // PAGE) * PAGE
            cpu.mem_map(self.mapped, size)
            cpu.reg_write(UC_ARM64_REG_X0, self.mapped)
            self.mapped += size + PAGE
        elif call in (MUNMAP, MPROTECT, MADVISE):
            cpu.reg_write(UC_ARM64_REG_X0, 0)
        elif call in (SET_TID_ADDRESS, GETTID):
            cpu.reg_write(UC_ARM64_REG_X0, 1)
        elif call == IOCTL:  # whether it writes to a terminal
            cpu.reg_write(UC_ARM64_REG_X0, 2**64 - ENOTTY)
        else:
            print(f"system call {call} is not answered here", file=sys.stderr)
            cpu.emu_stop()

    def run(self) -> int:
        self.cpu.emu_start(self.entry, 0)
        return self.code


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(Program(Path(sys.argv[1]), sys.argv[2:]).run())

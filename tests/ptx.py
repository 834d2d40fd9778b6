"""Execute a kernel's PTX for the 128 threads of one warpgroup, to find races between them in shared memory.

Pallas's interpreter treats a warpgroup as one thread. Here every thread has its own registers. It is a race if two
threads access the same word of shared memory without a barrier in between, and at least one of them writes. Only
integers, which addresses and branches depend on, are computed, and races between warpgroups are not looked for.
"""

import operator
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

THREADS = 128
_WARP = 32
_WORD = 4
_PARAMETER = 40
"""An address's lower bits are the offset in a kernel's parameter; the bits above are its number, from 1 on."""


class Race(NamedTuple):
    """Two lines of PTX that access the same word."""

    before: str
    after: str


class Run(NamedTuple):
    races: set[Race]
    barriers: int
    accesses: int
    """How many instructions accessed shared memory."""


class _Instruction(NamedTuple):
    text: str
    negated: str
    predicate: str | None
    name: str
    operands: list[str]

    @property
    def bits(self) -> int:
        return 64 if self.name.endswith("64") or ".wide" in self.name else 32


_LINE = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?);?$")
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mad": lambda x, y, z: x * y + z,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "neg": operator.neg,
    "shl": operator.lshift,
    "shr": operator.rshift,
    "max": np.maximum,
    "min": np.minimum,
    "bfe": lambda x, at, count: (x >> at) & ((1 << count) - 1),
    "mov": lambda x: x,
    "cvt": lambda x: x,
    "cvta": lambda x: x,
    "selp": lambda x, y, p: np.where(p, x, y),
}
_COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "gt", "lt", "le", "ge")}
_WITHOUT_ADDRESSES = ("mbarrier", "fence", "prefetch", "griddepcontrol", "bar.warp")


class _Warpgroup:
    """The registers of a warpgroup, and the accesses of its threads since the last barrier."""

    def __init__(self, number: int, words: dict[int, int]) -> None:
        self.thread = np.arange(THREADS) + THREADS * number
        self.registers: dict[str, np.ndarray] = {}
        self.words = words
        self.touched: dict[int, dict[tuple[int, bool], str]] = {}
        self.races: set[Race] = set()
        self.barriers = self.accesses = self.expected = 0

    def value(self, operand: str) -> np.ndarray:
        if operand.startswith("%tid.x"):
            return self.thread
        if operand.startswith("%") and not operand.startswith("%ctaid"):
            return self.registers[operand]
        number = int(operand, 0) if re.fullmatch(r"-?\d+", operand) else 0
        if parameter := re.search(r"_param_(\d+)", operand):
            number = int(parameter[1]) + 1 << _PARAMETER
        return np.full(THREADS, number)

    def address(self, operand: str) -> np.ndarray:
        base, *offset = re.search(r"\[([^\]]+)\]", operand)[1].split("+", 1)
        return self.value(base) + int(offset[0] if offset else 0)

    def touch(self, addresses: np.ndarray, line: str, *, writes: bool, size: int = _WORD) -> None:
        self.accesses += 1
        for thread, address in enumerate(addresses.tolist()):
            for word in range(address // _WORD, (address + size) // _WORD):
                self._touch_word(word, thread, line, writes)

    def overwrite(self, address: int, line: str) -> None:
        """Record a copy engine's write, as the first thread's: of as many bytes as the last `expect_tx` announced."""
        for word in range(address // _WORD, (address + self.expected) // _WORD):
            self._look(word, 0, line, writes=True)

    def _touch_word(self, word: int, thread: int, line: str, writes: bool) -> None:
        self._look(word, thread, line, writes=writes)
        self.touched.setdefault(word, {}).setdefault((thread, writes), line)

    def _look(self, word: int, thread: int, line: str, *, writes: bool) -> None:
        for (other, wrote), before in self.touched.get(word, {}).items():
            if other != thread and (writes or wrote):
                self.races.add(Race(before, line))

    def execute(self, x: _Instruction) -> None:
        """Execute an instruction that is not a branch."""
        name, operands = x.name, x.operands
        if name.startswith("bar.sync"):
            self.barriers += 1
            self.touched.clear()
        elif "expect_tx" in name:
            self.expected = int(self.value(operands[-1])[0]) * THREADS
        elif name.startswith("cp.async"):
            self.overwrite(int(self.address(operands[0])[0]), x.text)
        elif name.startswith("elect"):
            self.registers[operands[0].split("|")[1]] = self.thread % _WARP == 0
        elif name.startswith("st.shared"):
            self.touch(self.address(operands[0]), x.text, writes=True)
        elif name.startswith(("ld", "shfl")):
            self._load(x)
        elif name.startswith("setp"):
            self.registers[operands[0]] = self._compare(x)
        elif not name.startswith((*_WITHOUT_ADDRESSES, "st")):
            self.registers[operands[0]] = self._compute(x)

    def _load(self, x: _Instruction) -> None:
        target, source = x.operands[0], x.operands[-1]
        found = np.zeros(THREADS, np.int64)
        if x.name.startswith("ld.param"):
            found = self.value(source.strip("[]").partition("+")[0])
        elif x.name.startswith("ld.global"):
            address = self.address(source)
            if (address == address[0]).all():
                found = found + self.words.get(int(address[0]) % (1 << _PARAMETER), 0)
        elif x.name.startswith("shfl.sync.idx"):
            found = np.repeat(self.value(x.operands[1]).reshape(-1, _WARP)[:, 0], _WARP)
        elif x.name.startswith("ldmatrix"):
            self.touch(self.address(source), x.text, writes=False, size=16)
        elif x.name.startswith("ld.shared"):
            self.touch(self.address(source), x.text, writes=False)
        for register in re.findall(r"%\w+", target):
            self.registers[register] = found

    def _compare(self, x: _Instruction) -> np.ndarray:
        comparison, kind = x.name.split(".")[1:3]
        if kind.startswith("f"):
            return np.zeros(THREADS, bool)
        one, other = (self._as(self.value(y), kind) for y in x.operands[1:3])
        return _COMPARISONS[comparison](one, other)

    def _compute(self, x: _Instruction) -> np.ndarray:
        kinds = x.name.split(".")
        if any(kind.startswith("f") for kind in kinds[1:]):
            return np.zeros(THREADS, np.int64)
        values = [self.value(y) for y in x.operands[1:]]
        if kinds[-1] == "pred":
            return ~values[0] if kinds[0] == "not" else _ARITHMETIC[kinds[0]](*values)
        values = [y if y.dtype == bool else self._as(y, kinds[-1]) for y in values]
        return self._as(_ARITHMETIC[kinds[0]](*values), f"s{x.bits}")

    @staticmethod
    def _as(x: np.ndarray, kind: str) -> np.ndarray:
        """Truncate 32-bit numbers to 32 bits, signed or unsigned; leave others as they are."""
        if not kind.endswith("32"):
            return x
        x = x & 0xFFFFFFFF
        return x if kind.startswith("u") else np.where(x >= 1 << 31, x - (1 << 32), x)


def run(text: str, *, warpgroup: int, branch: int, words: dict[int, int]) -> Run:
    """Execute one of a block's warpgroups, with this branch of the switch and these words at addresses in memory."""
    lines = [line.strip() for line in text.splitlines()]
    labels = {found[1]: i for i, line in enumerate(lines) if (found := re.match(r"(\$L__BB\w+):", line))}
    targets = re.search(r"\.branchtargets(.*?);", text, re.DOTALL)
    threads = _Warpgroup(warpgroup, words)
    at = next(i for i, line in enumerate(lines) if "func_begin0" in line)
    while not lines[at].startswith("ret"):
        line, at = lines[at], at + 1
        found = _LINE.match(line)
        if found is None or line.endswith(":") or line.startswith((".", "//", "$")):
            continue
        negated, predicate, name, rest = found.groups()
        x = _Instruction(line, negated, predicate, name, re.split(r",\s*(?![^\[{]*[\]}])", rest))
        if name == "brx.idx":
            at = labels[re.findall(r"\$L__BB\w+", targets[1])[branch]]
        elif name in ("bra", "bra.uni"):
            at = labels[x.operands[0]] if x.operands[0] in labels and _goes(threads, x) else at
        else:
            threads.execute(x)
    return Run(threads.races, threads.barriers, threads.accesses)


def _goes(threads: _Warpgroup, x: _Instruction) -> bool:
    """Return whether the threads take a branch: all or none. (Labels of inline PTX are loops that wait: not taken.)"""
    if x.predicate is None:
        return True
    taken = threads.value(x.predicate) != (x.negated == "!")
    assert taken.all() == taken.any(), f"threads part at {x.text}"
    return bool(taken[0])

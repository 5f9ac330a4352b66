"""Classic BPF as seccomp runs it: a reader of filters, and a smaller filter that answers the same.

Loading costs the kernel about a third of a microsecond for each instruction, at every start of a container, and a profile names
hundreds of calls of which most lie side by side. ``compressed`` asks a filter what it answers for every call of every
architecture, joins neighbours into ranges, and writes a binary search over them; where the answer depends on arguments the
original's own instructions follow. The result is checked against the original before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

Instruction = tuple[int, int, int, int]  # code, jt, jf, k
Program = list[Instruction]
#: What a look at (architecture, number) finds: ("ret", action), or ("at", index) where an argument is read first.
Answer = tuple[str, int]

LD_ABS, JA, JEQ, JGT, JGE, JSET, AND, RET = 0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_TOP = (1 << 32) - 1
_TESTS: dict[int, Callable[[int, int], bool]] = {
    JEQ: lambda a, k: a == k,
    JGT: lambda a, k: a > k,
    JGE: lambda a, k: a >= k,
    JSET: lambda a, k: bool(a & k),
}


class Unknown(ValueError):
    """An instruction that seccomp filters do not need."""


def parse(code: bytes) -> Program:
    """struct sock_filter, one after the other."""
    return list(struct.iter_unpack("=HBBI", code))


def encode(program: Iterable[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def run(program: Program, arch: int, number: int, args: tuple[int, ...] = ()) -> Answer:
    """The verdict. Without args it stops where one is read. Unknown for anything but loads, AND, jumps and returns."""
    at, value = 0, 0
    data = struct.pack("=iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *args) if args else b""
    while True:
        code, jt, jf, k = program[at]
        if code == LD_ABS:
            if k == _NUMBER:
                value = number
            elif k == _ARCH:
                value = arch
            elif data:
                (value,) = struct.unpack_from("=I", data, k)
            else:
                return "at", at
        elif code == AND:
            value &= k
        elif code == JA:
            at += k
        elif code == RET:
            return "ret", k
        elif code in _TESTS:
            at += jt if _TESTS[code](value, k) else jf
        else:
            raise Unknown(f"BPF code {code:#x}")
        at += 1


def _constants(program: Program) -> set[int]:
    """Every number that anything is compared with: between two neighbours the answer cannot change."""
    return {k for code, _jt, _jf, k in program if code in (JEQ, JGT, JGE)}


def _ranges(program: Program, arch: int, marks: list[int]) -> list[tuple[int, Answer]]:
    """(first number, answer) of each range, up to the next one's first."""
    found: list[tuple[int, Answer]] = []
    for mark in marks:
        answer = run(program, arch, mark)
        if not found or found[-1][1] != answer:
            found.append((mark, answer))
    return found


def _marks(program: Program) -> list[int]:
    marks = {0}
    for constant in _constants(program):
        marks.update({constant, min(constant + 1, _TOP)})
    return sorted(marks)


def _reachable(program: Program, starts: Iterable[int]) -> list[int]:
    seen: set[int] = set()
    waiting = list(starts)
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        code, jt, jf, k = program[at]
        if code == JA:
            waiting.append(at + 1 + k)
        elif code in _TESTS:
            waiting += [at + 1 + jt, at + 1 + jf]
        elif code != RET:
            waiting.append(at + 1)
    return sorted(seen)


def _moved(program: Program, kept: list[int]) -> Program:
    """The kept instructions, which jump only among themselves, closed up."""
    place = {old: new for new, old in enumerate(kept)}
    result: Program = []
    for new, old in enumerate(kept):
        code, jt, jf, k = program[old]
        if code == JA:
            k = place[old + 1 + k] - new - 1
        elif code in _TESTS:
            jt, jf = (place[old + 1 + offset] - new - 1 for offset in (jt, jf))
        elif code != RET and place[old + 1] != new + 1:
            raise Unknown("an instruction lost its successor")
        result.append((code, jt, jf, k))
    return result


def _search(ranges: list[tuple[int, Answer]]) -> tuple[list[tuple[int, object, object]], object]:
    """A binary search as nodes (number, below, from there on) in preorder; a branch is the index of a node or an Answer."""
    nodes: list[tuple[int, object, object]] = []

    def build(low: int, high: int) -> object:
        if high - low == 1:
            return ranges[low][1]
        middle = (low + high) // 2
        index = len(nodes)
        nodes.append((0, 0, 0))
        below = build(low, middle)
        nodes[index] = (ranges[middle][0], below, build(middle, high))
        return index

    return nodes, build(0, len(ranges))


def _block(ranges: list[tuple[int, Answer]]) -> tuple[Program, list[tuple[int, int]]]:
    """Instructions that decide on the number, and (index, original index) of jumps into the argument checks."""
    nodes, root = _search(ranges)
    leaves = list(dict.fromkeys(answer for _first, answer in ranges))
    if isinstance(root, tuple):
        nodes = []
    offset = 1 + len(nodes)
    place = {answer: offset + index for index, answer in enumerate(leaves)}

    def position(branch: object) -> int:
        return place[branch] if isinstance(branch, tuple) else 1 + int(branch)  # type: ignore[call-overload]

    result: Program = [(LD_ABS, 0, 0, _NUMBER)]
    for index, (number, below, above) in enumerate(nodes, 1):
        jt, jf = position(above) - index - 1, position(below) - index - 1
        if max(jt, jf) > 255:
            raise Unknown("a jump too far")
        result.append((JGE, jt, jf, number))
    holes = []
    for kind, value in leaves:
        if kind == "at":
            holes.append((len(result), value))
            result.append((JA, 0, 0, 0))
        else:
            result.append((RET, 0, 0, value))
    return result, holes


def compressed(code: bytes, architectures: Iterable[int]) -> bytes:
    """A filter with the same verdicts, or code itself where it holds something unforeseen or would not get smaller.

    architectures: AUDIT_ARCH_* that the filter tells apart; all others get what it says of an unknown one.
    """
    program = parse(code)
    try:
        result = encode(_rewritten(program, tuple(architectures)))
    except Unknown:
        return code
    return result if len(result) < len(code) else code


def _rewritten(program: Program, architectures: tuple[int, ...]) -> Program:
    marks = _marks(program)
    blocks = [_block(_ranges(program, arch, marks)) for arch in architectures]
    other = run(program, 0, 0)
    if other[0] != "ret" or any(run(program, 0, mark) != other for mark in marks):
        raise Unknown("the answer for an unknown architecture depends on the call")
    head: Program = [(LD_ABS, 0, 0, _ARCH)]
    body: Program = []
    holes: list[tuple[int, int]] = []
    length = 1 + 2 * len(architectures) + 1
    for arch, (block, inner) in zip(architectures, blocks, strict=True):
        # a jump of any length: not this architecture skips it
        at = len(head)
        head += [(JEQ, 0, 1, arch), (JA, 0, 0, length + len(body) - at - 2)]
        holes += [(length + len(body) + index, old) for index, old in inner]
        body += block
    head.append((RET, 0, 0, other[1]))
    result = head + body
    kept = _reachable(program, {old for _index, old in holes})
    place = {old: len(result) + new for new, old in enumerate(kept)}
    for index, old in holes:
        result[index] = (JA, 0, 0, place[old] - index - 1)
    result += _moved(program, kept)
    _verify(program, result, architectures, marks)
    return result


def _verify(program: Program, result: Program, architectures: tuple[int, ...], marks: list[int]) -> None:
    """Asks both of every range's ends, with some arguments: Unknown if they ever differ."""
    edges = sorted(
        {0, 1, 2, _TOP, *(k for code, _jt, _jf, k in program if code in (JEQ, JGE, JGT, JSET, AND) and k > 1024)}
    )
    samples = [(value,) * 6 for value in (0, 5, 38, 39, 40, 41, *edges[-24:], 0x7E020000, 0x10000000, (1 << 64) - 1)]
    for arch in (*architectures, 0):
        for mark in marks:
            answer = run(program, arch, mark)
            if answer[0] == "ret":
                if run(result, arch, mark) != answer:
                    raise Unknown("the smaller filter answers otherwise")
                continue
            for args in samples:
                if run(result, arch, mark, args) != run(program, arch, mark, args):
                    raise Unknown("the smaller filter answers otherwise")

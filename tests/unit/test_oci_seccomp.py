"""Docker's default profile as compiled here: what it answers for every call, against the profile's own words."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from wherry.engine.containers.specs import profile
from wherry.linux import caps, libseccomp, process, seccomp, syscall
from wherry.oci import bpf, filters
from wherry.oci.errors import SpecError

DOCKER = caps.mask(profile.DEFAULT_CAPABILITIES)
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x00000000
X86_64, I386, X32 = 0xC000003E, 0x40000003, 0x40000000

pytestmark = pytest.mark.skipif(syscall.MACHINE != "x86_64", reason="the numbers below are those of x86_64")


@pytest.fixture(scope="module")
def program() -> bpf.Program:
    return bpf.parse(filters.Filters().compiled("", DOCKER))


def number(name: str) -> int:
    result: int = libseccomp.library().seccomp_syscall_resolve_name(name.encode())
    assert result >= 0, name
    return result


def test_the_profile_is_docker_s_by_count() -> None:
    document = json.loads(filters.default_profile())
    assert len(document["syscalls"][0]["names"]) == 361
    assert (document["defaultAction"], document["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    admin = next(rule for rule in document["syscalls"] if rule.get("includes", {}).get("caps") == ["CAP_SYS_ADMIN"])
    assert len(admin["names"]) == 26


def test_every_number_answers_as_the_profile_says(program: bpf.Program) -> None:
    """x86-64 and x32, by name; what no rule names is EPERM, and clone3 ENOSYS."""
    document = json.loads(filters.default_profile())
    resolve = libseccomp.library().seccomp_syscall_resolve_name
    always = {number(name) for name in document["syscalls"][0]["names"] if resolve(name.encode()) >= 0}
    always |= {
        number(name)
        for name in ("process_vm_readv", "process_vm_writev", "ptrace", "arch_prctl", "modify_ldt", "chroot")
    }
    checked = {number(name) for name in ("clone", "socket", "personality")}
    for call in range(600):
        if call in checked:
            continue
        expected = ALLOW if call in always else ERRNO | (errno.ENOSYS if call == number("clone3") else errno.EPERM)
        assert bpf.run(program, X86_64, call, (0,) * 6) == ("ret", expected), call


def test_what_must_be_denied(program: bpf.Program) -> None:
    for name in (
        "io_uring_setup", "io_uring_enter", "keyctl", "add_key", "request_key", "userfaultfd", "bpf", "kexec_load", "pivot_root",
        "mount",
        "unshare", "setns", "open_by_handle_at", "init_module", "reboot", "perf_event_open", "syslog", "move_mount", "fsopen",
    ):  # fmt: skip
        assert bpf.run(program, X86_64, number(name), (0,) * 6) == ("ret", ERRNO | errno.EPERM), name


def test_arguments(program: bpf.Program) -> None:
    def answer(name: str, *args: int) -> int:
        return bpf.run(program, X86_64, number(name), (*args, *(0,) * (6 - len(args))))[1]

    allowed = [family for family in range(64) if answer("socket", family) == ALLOW]
    assert allowed == [family for family in range(64) if family not in (38, 40)]  # AF_ALG, AF_VSOCK
    # socket(2) takes an int: the kernel sees 38 and 40 in these
    assert [
        family
        for family in (38 | 1 << 32, 40 | 1 << 32, 40 | 1 << 63, 64, 2 | 1 << 32)
        if answer("socket", family) == ALLOW
    ] == []
    assert answer("clone", 0x11) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer("clone", 0x11 | flag) == ERRNO | errno.EPERM, hex(flag)
    assert [value for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 1, 9, 0x40000) if answer("personality", value) == ALLOW] == [
        0, 8, 0x20000, 0x20008, 0xFFFFFFFF,
    ]  # fmt: skip


def test_twin_a_comparison_of_64_bits_lets_families_pass() -> None:
    document = json.loads(filters.default_profile())
    rules = [rule for rule in document["syscalls"] if rule["names"] == ["socket"] and rule["args"][0]["value"] > 40]
    rules[0]["args"] = [{"index": 0, "value": 40, "op": "SCMP_CMP_GT"}]
    loose = bpf.parse(filters.compile_profile(document, DOCKER))
    assert bpf.run(loose, X86_64, number("socket"), (40 | 1 << 32, 0, 0, 0, 0, 0))[1] == ALLOW


def socketcall(document: Any) -> int:
    """What a profile answers to i386's socketcall(2): its arguments lie in memory, which no filter reads."""
    return bpf.run(bpf.parse(filters.compile_profile(document, DOCKER)), I386, 102, (1, 0, 0, 0, 0, 0))[1]


def test_socketcall_of_32_bit_programs_is_as_documented() -> None:
    """docs/architecture.md says that it passes, as with Docker, and what closes it."""
    document = json.loads(filters.default_profile())
    assert socketcall(document) == ALLOW
    document["syscalls"][0]["names"].remove("socketcall")
    document["syscalls"].insert(0, {"names": ["socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    assert socketcall(document) == ERRNO | errno.ENOSYS


def test_rules_that_contradict_each_other_are_refused() -> None:
    rules = [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["write", "read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2},
    ]
    document = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    with pytest.raises(SpecError, match="syscalls/1: another rule says otherwise of read"):
        filters.compile_profile(document, 0)
    rules[1]["errnoRet"] = 1
    filters.compile_profile(document, 0)


def test_other_abis(program: bpf.Program) -> None:
    assert bpf.run(program, I386, 4, (0,) * 6)[1] == ALLOW  # write
    assert bpf.run(program, I386, 21, (0,) * 6)[1] == ERRNO | errno.EPERM  # mount
    assert bpf.run(program, X86_64, X32 | 1, (0,) * 6)[1] == ALLOW  # write
    assert bpf.run(program, X86_64, X32 | 165, (0,) * 6)[1] == ERRNO | errno.EPERM  # mount
    assert bpf.run(program, 0xC00000B7, 64, (0,) * 6)[1] == KILL  # another machine's


def test_capabilities_open_what_they_stand_for() -> None:
    more = bpf.parse(filters.Filters().compiled("", DOCKER | caps.mask(["SYS_ADMIN", "SYS_MODULE"])))
    for name in ("mount", "unshare", "bpf", "clone3", "init_module"):
        assert bpf.run(more, X86_64, number(name), (0x10000000,) * 6) == ("ret", ALLOW), name
    without = bpf.parse(filters.Filters().compiled("", 0))
    assert bpf.run(without, X86_64, number("chroot"), (0,) * 6)[1] == ERRNO | errno.EPERM


def test_the_smaller_filter_answers_the_same(monkeypatch: pytest.MonkeyPatch, program: bpf.Program) -> None:
    monkeypatch.setattr(bpf, "compressed", lambda code, _architectures: code)
    original = bpf.parse(filters.Filters().compiled("", DOCKER))
    assert len(program) < len(original) / 3
    samples = [
        (value,) * 6
        for value in (0, 1, 12, 38, 39, 40, 41, 0x11, 0x7E020000, 0x10000011, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1)
    ]
    for arch in (X86_64, I386, 0xC00000B7, 0):
        for call in (*range(700), *range(X32, X32 + 700), 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000):
            for args in samples if call < 700 else samples[:3]:
                assert bpf.run(program, arch, call, args) == bpf.run(original, arch, call, args), (arch, call, args)


def test_a_filter_with_something_unforeseen_stays_as_it_is() -> None:
    odd = bpf.encode([(0x20, 0, 0, 0), (0x02, 0, 0, 1), (0x06, 0, 0, ALLOW)])  # st M[1]
    assert bpf.compressed(odd, (X86_64,)) == odd


def probed(numbers: list[int], code: bytes) -> dict[int, int]:
    """errno of each call with the filter loaded, in a child of its own, with arguments that no call can do anything with."""
    program = seccomp.Program(code)
    raw = syscall.pylibc.syscall
    found = {}
    for call in numbers:
        pid = os.fork()
        if pid == 0:
            process.set_no_new_privileges()
            seccomp.load(program)
            ctypes.set_errno(0)
            result = raw(ctypes.c_long(call), *(ctypes.c_long(-1),) * 6)
            os._exit(ctypes.get_errno() & 0xFF if result == -1 else 255)
        _pid, status = os.waitpid(pid, 0)
        found[call] = os.waitstatus_to_exitcode(status)
    return found


def test_the_kernel_answers_as_the_profile_says(program: bpf.Program) -> None:
    """Every number that the profile denies, really called: exactly the profile's errno."""
    everything = ((1 << 64) - 1,) * 6
    exempt = {335, 336}  # uretprobe and uprobe: the kernel asks no filter about the calls that its own probes plant
    denied = [
        call for call in range(480) if call not in exempt and bpf.run(program, X86_64, call, everything)[1] != ALLOW
    ]
    assert len(denied) > 80
    answers = probed(denied, bpf.encode(program))
    for call in denied:
        verdict = bpf.run(program, X86_64, call, everything)[1]
        assert answers[call] == verdict & 0xFFFF, call
    unfiltered = probed([number("io_uring_enter"), number("keyctl")], bpf.encode([(0x06, 0, 0, ALLOW)]))
    assert errno.EPERM not in unfiltered.values()


def with_rule(**fields: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", **fields}]}


@pytest.mark.parametrize(
    "document, where",
    [
        ([], "not an object"), ({}, "defaultAction"), ({"defaultAction": "SCMP_ACT_WRONG"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {"x": 1}}, "syscalls"),
        (with_rule(action="x"), "syscalls/0"), (with_rule(names=[1]), "syscalls/0"), (with_rule(args=[{"index": 9}]), "syscalls/0"),
        (with_rule(errnoRet=-1), "syscalls/0"),
    ],
)  # fmt: skip
def test_profiles_that_are_none(document: Any, where: str) -> None:
    with pytest.raises(SpecError, match=where):
        filters.compile_profile(document, 0)


def test_the_cache_is_used_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = filters.Filters(tmp_path).compiled("", DOCKER)
    (file,) = tmp_path.iterdir()
    calls = []
    genuine = filters.compile_profile

    def counted(document: Any, capabilities: int) -> bytes:
        calls.append(capabilities)
        return genuine(document, capabilities)

    monkeypatch.setattr(filters, "compile_profile", counted)
    assert filters.Filters(tmp_path).compiled("", DOCKER) == first
    assert calls == []
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    assert filters.Filters(tmp_path).compiled("", DOCKER) == first
    assert filters.Filters(tmp_path).compiled("", 0) != first
    assert calls == [DOCKER, 0]

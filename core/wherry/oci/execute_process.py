"""Executors about the process itself: cgroups, namespaces, limits, identity, filter, and the execve at the end."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py without its enums
import errno
import fcntl
import os
import resource
import select
import socket
import stat
import struct

from wherry.linux import caps, mount, namespaces, path, process, seccomp
from wherry.linux.userns import groups_denied
from wherry.oci import users
from wherry.oci.child import Child, Failure, Function, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_SIGNALS = range(1, 32)
#: So long, in milliseconds, one that had a process spawned waits for its end: the shim hears of a short life the sooner.
_LINGER = 20
#: And so long it rests then: giving back its memory would hold up the shim, which mostly runs on the same processor.
_REST = 5
_LAST_CAPABILITY = caps.last()
#: setgroups(2) is denied where the shim lives: groups stay what they were, and none of the image's can be had.
_KEEPS_GROUPS = groups_denied()
_JOIN = {"ipc": namespaces.NEWIPC, "uts": namespaces.NEWUTS, "net": namespaces.NEWNET, "cgroup": namespaces.NEWCGROUP}


def stdio(child: Child) -> None:
    """Descriptors 0, 1 and 2; and closes all but what is still needed: a held child must not keep others' pipes open."""
    wanted = [
        fd if fd > 2 or fd == number else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        for number, fd in enumerate(child.stdio)
    ]
    for number, fd in enumerate(wanted):
        if fd >= 0:
            os.dup2(fd, number, inheritable=True)
            os.set_inheritable(number, True)
        verify_stream(number)
    keep = [0, 1, 2, child.channel, *child.fds, *child.tasks, *child.namespaces.values()]
    keep += [fd for _key, fd in child.ready]
    keep += [fd for fd in (child.target, child.pidns, child.unified) if fd >= 0]
    process.close_others(keep)


def verify_stream(fd: int) -> None:
    """Failure (Invalid) for a directory: ".." of it would lead out of the container, as with a leaked one (CVE-2024-21626)."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise Failure("Invalid", ("stdin", "stdout", "stderr")[fd], "is a directory, which leads out of the container")


def cgroup(child: Child) -> None:
    """cgroup v1: "0" into the ``tasks`` opened by the shim moves this thread; writing another's pid would wait for RCU."""
    for fd in child.tasks:
        os.write(fd, b"0")
        os.close(fd)
    child.tasks = []


def join(child: Child, types: tuple[bytes, ...]) -> None:
    """Enters namespaces of the sandbox, and those of the spec's paths ("path/0", ...). A missing one is an error: the process must
    never run in the host's instead."""
    for name in types:
        key = text(name)
        fd = child.namespaces.pop(key, -1)
        if fd < 0:
            raise Failure("FailedPrecondition", f"{key} namespace", "the sandbox has none")
        namespaces.setns(fd, _JOIN.get(key, 0))
        os.close(fd)


def userns(child: Child) -> None:
    """The user namespace comes first, since it owns all that are made after it: joined or new, by a second clone.

    The sandbox's is joined here, then the rest (mount, pid) is born with the second child; a new one is born with it and gets its
    maps from here. That child's parent is the shim (CLONE_PARENT), which learns its pid and pidfd from a packet.
    """
    fd = child.namespaces.pop("user", -1)
    flags = child.flags
    if fd >= 0:
        namespaces.setns(fd, namespaces.NEWUSER)
        os.close(fd)
    else:
        flags |= namespaces.NEWUSER
        # else its uid_map would belong to the host's root, whom a rootless writer is not
        process.set_dumpable(True)
    _second(child, flags)
    process.set_dumpable(False)
    if os.getgroups():
        _drop_groups()
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def pidns(child: Child) -> None:
    """The pid namespace of a sandbox or of a running container: a second process is born there.

    For a shim that could not come back from it; and where whoever is there already may look into others (CAP_SYS_PTRACE), as the
    second process has nothing of the host's any more: neither its root nor its working directory.
    """
    _second(child, child.flags)


def _second(child: Child, flags: int) -> None:
    """Returns in a second process, this one's sibling, whose pid and pidfd the shim has been told; this one ends."""
    if child.pidns >= 0:
        namespaces.setns(child.pidns, namespaces.NEWPID)
        if child.pidns != child.target:  # whose other namespaces are still to be entered
            os.close(child.pidns)
        child.pidns = -1
    wait, release = os.pipe()
    pid, pidfd = namespaces.clone3(flags | namespaces.CLONE_PARENT | namespaces.CLONE_CLEAR_SIGHAND)
    if pid == 0:
        os.close(release)
        if os.read(wait, 1) != b"m":
            os._exit(125)
        os.close(wait)
        return
    if flags & namespaces.NEWUSER:
        namespaces.write_id_maps(pid, child.idmap["uids"], child.idmap["gids"])
    child.send({"pid": pid}, (pidfd,))  # before anything that it says itself
    os.write(release, b"m")
    os._exit(0)


def _drop_groups() -> None:
    try:
        os.setgroups([])
    except PermissionError:
        pass  # setgroups is denied in this user namespace, and so can never be used to gain anything


def enter(child: Child, flags: int) -> None:
    """exec: all other namespaces of the container's first process at once, by its pidfd; its root becomes ours."""
    namespaces.setns(child.target, flags)
    if child.target != child.pidns:  # which a second process still enters by the same pidfd
        os.close(child.target)
    child.target = -1
    if flags & namespaces.NEWUSER:
        _drop_groups()
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    if flags & namespaces.NEWNS:
        child.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def unshare(_child: Child, flags: int) -> None:
    """Namespaces that must be made after others were entered: cgroup."""
    namespaces.unshare(flags)


def timens(_child: Child, offsets: tuple[tuple[bytes, int, int], ...]) -> None:
    """A time namespace: offsets are written while nobody is in it, then this process enters it.

    Kernels before 5.18 or so do not enter it by themselves at execve; clone3 with CLONE_NEWTIME would bar the offsets.
    """
    namespaces.unshare(namespaces.NEWTIME)
    if offsets:
        try:
            fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        except PermissionError:  # not dumpable, and no longer the host's root
            process.set_dumpable(True)
            fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
            process.set_dumpable(False)
        try:
            for clock, seconds, nanoseconds in offsets:
                os.write(fd, b"%s %d %d" % (clock, seconds, nanoseconds))
        finally:
            os.close(fd)
    fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    namespaces.setns(fd, namespaces.NEWTIME)
    os.close(fd)


def loopback(_child: Child) -> None:
    """Brings lo up in a network namespace just born."""
    bring_up_loopback()


def bring_up_loopback() -> None:
    """SIOCSIFFLAGS (netdevice(7)): lo up, in this thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def hostname(_child: Child, name: bytes) -> None:
    process.set_hostname(name)


def domainname(_child: Child, name: bytes) -> None:
    process.set_domainname(name)


def oom_score(_child: Child, value: int) -> None:
    """/proc/self/oom_score_adj, on the host's proc; lowering it below the shim's needs CAP_SYS_RESOURCE."""
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        if int(os.read(fd, 16)) != value:
            os.write(fd, b"%d" % value)
    finally:
        os.close(fd)


def rlimits(_child: Child, limits: tuple[tuple[int, int, int], ...]) -> None:
    """setrlimit(2) of (number, soft, hard); raising a hard limit needs CAP_SYS_RESOURCE."""
    for number, soft, hard in limits:
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError:
            raise Failure("Denied", f"rlimit {number} of {soft}:{hard}", "the shim's own hard limit is lower") from None


def setsid(_child: Child) -> None:
    os.setsid()


def umask(_child: Child, mask: int) -> None:
    os.umask(mask)


def account(child: Child, passwd: bytes, group: bytes) -> None:
    """The container's user and group get names in the root's own files, before anything of the host's is mounted over those."""
    for name, line in ((b"etc/passwd", passwd), (b"etc/group", group)):
        if line:
            users.introduce(child.root, name, line)


def user(child: Child, username: bytes, uid: int, gid: int, additional: tuple[int, ...]) -> None:
    """Who the process will be, by the root's own passwd and group; see wherry.oci.users."""
    child.uid, child.gid, child.groups, child.home = users.resolve(child.root, username, uid, gid, additional)


def keyring(_child: Child, name: bytes) -> None:
    """A session keyring of its own: the host's keys stay unreachable. Where keyctl is filtered or absent there are none."""
    try:
        process.join_session_keyring(name)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def runtime_hooks(child: Child) -> None:
    """Lets the shim run the createRuntime hooks, in its own namespaces, and waits for it."""
    child.send({"hooks": "createRuntime"})
    child.await_packet(b"h")


def created(child: Child) -> None:
    """Reports "created" with the user, and the terminal's master, and waits for the start, unless it has none and starts by itself."""
    master = (child.master,) if child.master >= 0 else ()
    # the root, /proc and the like have served; who waits holds nothing that a later step does not need
    process.close_others((0, 1, 2, child.channel, *child.fds, *master))
    child.root = child.proc = child.sys = child.dev = child.pts = child.master = -1
    child.fresh = (b"", -1)
    child.send({"created": {"user": f"{child.uid}:{child.gid}"}}, master)
    if master:
        os.close(master[0])
    if master or not child.starts:  # a terminal gets its size before anybody asks for it
        child.await_packet(b"s")


def label(_child: Child, name: bytes) -> None:
    """The AppArmor profile of the next execve, through a proc that fstatfs(2) and openat2(2) have confirmed."""
    resolve = path.RESOLVE_NO_SYMLINKS | path.RESOLVE_NO_MAGICLINKS
    proc = path.open_at(mount.AT_FDCWD, b"/proc", os.O_PATH | os.O_DIRECTORY, resolve)
    if path.filesystem(proc) != path.PROC_MAGIC:
        raise Failure("Denied", f'AppArmor profile "{text(name)}"', "/proc of the container is no proc")
    fd = path.open_below(proc, b"%d/attr/apparmor/exec" % os.getpid(), os.O_WRONLY)
    try:
        os.write(fd, b"exec " + name)
    finally:
        os.close(fd)
        os.close(proc)


def bounding(_child: Child, keep: int) -> None:
    caps.drop_bounding(keep, _LAST_CAPABILITY)


def filter(_child: Child, program: seccomp.Program, flags: int) -> None:
    """The seccomp filter; without no_new_privs it needs CAP_SYS_ADMIN, so it comes before the capabilities go."""
    seccomp.load(program, flags)


def no_new_privileges(_child: Child) -> None:
    process.set_no_new_privileges()


def identity(child: Child, effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    """Groups, ids, capabilities, in this order."""
    try:
        os.setgroups(child.groups)
    except PermissionError:
        # a filter of the user's own may refuse it: the groups of whoever started the shim are not for the container
        if not _KEEPS_GROUPS and not set(os.getgroups()).issubset(child.groups):
            raise
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _no_such_id(f"groups {child.groups}")
    process.prctl(process.PR_SET_KEEPCAPS, 1)
    try:
        os.setresgid(child.gid, child.gid, child.gid)
        os.setresuid(child.uid, child.uid, child.uid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _no_such_id(f"user {child.uid}:{child.gid}")
    caps.set(effective, permitted, inheritable)
    caps.set_ambient(ambient)


def _no_such_id(what: str) -> NoReturn:
    raise Failure(
        "FailedPrecondition",
        what,
        "the user namespace has no such id",
        "an ordinary user has those of /etc/subuid and /etc/subgid",
    )


def signals(_child: Child) -> None:
    """Every signal to its default, SIGPIPE and SIGXFSZ that Python ignores among them, and none blocked.

    Handlers went with the clone (CLONE_CLEAR_SIGHAND); what is ignored stays so until it is said otherwise.
    """
    default, ignored = _signal.SIG_DFL, _signal.SIG_IGN
    for number in _SIGNALS:
        if _signal.getsignal(number) == ignored:
            _signal.signal(number, default)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def chdir(_child: Child, name: bytes) -> None:
    """The working directory, entered as the user; it must lie in the root (CVE-2024-21626: /proc/self/fd/N of the host)."""
    os.chdir(name)
    verify_cwd(name)


def verify_cwd(name: bytes) -> None:
    """Failure (Denied) when the working directory cannot be reached from the root."""
    if not path.inside():
        raise Failure("Denied", f'working directory "{text(name)}"', "it lies outside the container's root")


def execute(child: Child) -> None:
    """execve, of each candidate in turn."""
    _pass_on(child)
    _first_of(child, lambda candidate: process.execve(candidate, child.argv, child.env))


def spawn(child: Child) -> None:
    """A second process executes it, by posix_spawn(3), in the pid namespace that was entered; this one tells and ends.

    It is born with all that was set before, and shares this one's memory until its execve: there is nothing to copy, and none of
    the host's left but that memory. So this is not for where somebody may look into it (CAP_SYS_PTRACE), nor for filters that refuse
    what is called here: the plan says "pidns" and "execute" then.
    """
    attributes = child.attributes or process.SpawnAttributes()
    if child.unified >= 0:
        attributes.set_cgroup(child.unified)
    _pass_on(child)
    # As ever; but here it is all that keeps the container's own root out of the memory that is lent.
    process.set_dumpable(False)
    born: list[int] = []

    def attempt(candidate: bytes) -> None:
        if child.search:
            os.stat(candidate)  # much cheaper than a process for each directory of PATH
        born.append(process.spawn(candidate, child.argv, child.env, attributes))

    _first_of(child, attempt)
    pid = born[0]
    pidfd = os.pidfd_open(pid)
    child.send({"pid": pid, "created": {"user": f"{child.uid}:{child.gid}"}, "running": True}, (pidfd,))
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(_LINGER):
        # Only said, not collected: that is for the shim, once this process has ended, which takes a while.
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if end is not None:
            child.send({"ended": end.si_status if end.si_code == os.CLD_EXITED else 128 + end.si_status})
        poll.unregister(pidfd)
        poll.poll(_REST)
    os._exit(0)


def _pass_on(child: Child) -> None:
    """Only 0, 1, 2 and the passed descriptors survive the execve to come."""
    first = 3 + len(child.fds)
    if child.fds:
        child.channel = fcntl.fcntl(child.channel, fcntl.F_DUPFD_CLOEXEC, 2 * first)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 2 * first) for fd in child.fds]
        for number, fd in enumerate(high, 3):
            os.dup2(fd, number, inheritable=True)
    process.close_from(first, process.CLOSE_RANGE_CLOEXEC)
    if child.wants_home:
        child.env[child.env_count] = b"HOME=" + child.home


def _first_of(child: Child, attempt: Callable[[bytes], None]) -> None:
    """Tries each candidate until one does not fail. Failure says why none could be executed."""
    denied: OSError | None = None
    for candidate in child.candidates:
        try:
            attempt(candidate)
            return
        except OSError as error:
            if child.search and error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            if error.errno in (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELIBBAD, errno.EISDIR):
                denied = error
                if child.search and error.errno == errno.EACCES:
                    continue
                break
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise Failure("CommandNotFound", f'exec "{text(candidate)}"', _cause(error)) from None
            raise Failure("CommandNotExecutable", f'exec "{text(candidate)}"', _cause(error)) from None
    name = text(child.argv[0] or b"")
    if denied is not None:
        raise Failure("CommandNotExecutable", f'exec "{name}"', _cause(denied))
    raise Failure("CommandNotFound", f'exec "{name}"', "executable file not found in $PATH")


def _cause(error: OSError) -> str:
    return (error.strerror or "").lower()


STEPS: dict[str, Function] = {
    "stdio": stdio,
    "cgroup": cgroup,
    "join": join,
    "userns": userns,
    "pidns": pidns,
    "enter": enter,
    "unshare": unshare,
    "timens": timens,
    "loopback": loopback,
    "hostname": hostname,
    "domainname": domainname,
    "oom_score": oom_score,
    "rlimits": rlimits,
    "setsid": setsid,
    "umask": umask,
    "account": account,
    "user": user,
    "keyring": keyring,
    "runtime_hooks": runtime_hooks,
    "created": created,
    "label": label,
    "bounding": bounding,
    "filter": filter,
    "no_new_privileges": no_new_privileges,
    "identity": identity,
    "signals": signals,
    "chdir": chdir,
    "execute": execute,
    "spawn": spawn,
}

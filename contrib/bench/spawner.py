"""Starts commands for the benchmark and takes their time: a small process, so that a spawn costs the same for everyone.

One JSON document a line: {"argvs": [[program, argument, ...], ...], "environ": {...}, "output": path} starts all of them at
once and answers {"elapsed": [ns of each, in order], "wall": ns, "codes": [...]}. Run with ``python3 -I -S``; stdlib only.
"""

import json
import os
import sys
import time


def run(argvs, environ, output):
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    began = {}
    order = {}
    elapsed = [0] * len(argvs)
    codes = [0] * len(argvs)
    first = time.monotonic_ns()
    for index, argv in enumerate(argvs):
        now = time.monotonic_ns()
        pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions)
        began[pid], order[pid] = now, index
    for _ in argvs:
        pid, status = os.wait()
        elapsed[order[pid]] = time.monotonic_ns() - began[pid]
        codes[order[pid]] = os.waitstatus_to_exitcode(status)
    return {"elapsed": elapsed, "wall": time.monotonic_ns() - first, "codes": codes}


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(run(request["argvs"], request["environ"], request["output"])), flush=True)

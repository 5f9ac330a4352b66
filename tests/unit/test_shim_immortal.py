"""What is immortal is not counted, and works as before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wherry
from wherry.shim.immortal import mark

CORE = str(Path(wherry.__file__).resolve().parent.parent)
PROGRAM = """
import ctypes, json, os, sys
sys.path.append(sys.argv[1])
from wherry.shim import immortal

def function():
    return ("a constant that only this code has", 12345.678)

class Thing:
    "A class."

if sys.argv[2] == "without":
    immortal.mark = lambda: 0
ring = []
ring.append(ring)
made = immortal.immortalize()
watched = function, function.__code__, function.__code__.co_consts[-1], Thing, json, sys.modules
before = [sys.getrefcount(one) for one in watched]
more = [list(watched) for _ in range(1000)]
after = [sys.getrefcount(one) for one in watched]
fresh = Thing()
told = sys.getrefcount(fresh)
others = [fresh] * 10
# 3.14 takes off what it had on its stack before
still = all(0 <= old - new < 10 for old, new in zip(before, after))
print(made > 5000, still, sys.getrefcount(fresh) == told + 10, immortal.immortalize() < made, flush=True)
pid = os.fork()
if pid == 0:
    del more, others
    Thing.changed = json.loads(json.dumps({"a": [function()[1]]}))
    os._exit(7 if Thing().changed == {"a": [12345.678]} else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)
"""


def run(how: str) -> list[str]:
    command = [sys.executable, "-I", "-c", PROGRAM, CORE, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not mark(), reason="not run: this interpreter has no immortal objects")
def test_nobody_counts_what_is_immortal() -> None:
    assert run("with") == ["True", "True", "True", "True", "7"]


LEAST = """
import ctypes, gc, sys
sys.path.append(sys.argv[1])
from wherry.shim import immortal
immortal.immortalize()
least = ctypes.c_uint32.from_address(id(None)).value
counts = [ctypes.c_uint32.from_address(id(one)).value for one in gc.get_objects()]
mortal = sum(count < 1 << 31 for count in counts)
print(mortal < 500, sum(1 << 31 <= count < least for count in counts), flush=True)
import os; os._exit(0)
"""


@pytest.mark.skipif(not mark(), reason="not run: this interpreter has no immortal objects")
def test_no_count_is_one_that_is_added_to() -> None:
    """Not even of what the interpreter held while it became immortal."""
    command = [sys.executable, "-I", "-c", LEAST, CORE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "0"]


def test_without_the_mark_everything_is_counted() -> None:
    assert run("without") == ["False", "False", "True", "False", "7"]

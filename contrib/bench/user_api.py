"""One life of a container by API for each line that comes: prints how many nanoseconds it took. Run by rootless.py."""

import sys
import time

import wherry
from wherry.api import RunRequest

TRUE = RunRequest(image=sys.argv[1], command=("true",), remove=True, network="none")

with wherry.connect() as engine:
    for _line in sys.stdin:
        began = time.perf_counter_ns()
        ended = engine.wait(engine.run(TRUE).id)
        elapsed = time.perf_counter_ns() - began
        if ended is None or ended.code != 0:
            sys.exit(f"true ended with {ended}")
        print(elapsed, flush=True)

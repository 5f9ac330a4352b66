"""The log: one JSON object a line, no import of loguru before there is something to say, no thread or process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.kernel.log import configure, logger


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    configure(tmp_path / "engine.log")
    yield tmp_path / "engine.log"
    configure(None)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_json(log: Path) -> None:
    logger.info("pulled {} in {:.1f} s", "busybox", 1.25)
    logger.bind(container="abc", size=5, other=[1]).warning("two\nlines \x00")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("failed")
    first, second, third = lines(log)
    assert (first["level"], first["message"]) == ("INFO", "pulled busybox in 1.2 s")
    assert (second["message"], second["extra"]) == ("two\nlines \x00", {"container": "abc", "size": 5, "other": "[1]"})
    assert (third["level"], third["exception"]) == ("ERROR", "ValueError: bad")
    assert first["module"] == __name__
    assert log.stat().st_mode & 0o777 == 0o600


def test_below_the_level(log: Path) -> None:
    logger.debug("not this")
    configure(log, "debug")
    logger.debug("but this")
    assert [line["message"] for line in lines(log)] == ["but this"]


def test_lines_of_threads_do_not_mix(log: Path) -> None:
    threads = [threading.Thread(target=lambda: [logger.info("x" * 3000) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {line["message"] for line in lines(log)} == {"x" * 3000}


def test_a_moved_file_is_found_again(log: Path) -> None:
    logger.info("one")
    log.rename(log.with_name("old"))
    logger.info("two")
    assert [line["message"] for line in lines(log)] == ["two"]


def test_loguru_comes_with_the_first_message() -> None:
    code = (
        "import sys; from wherry.kernel.log import logger; from wherry.kernel.kernel import Kernel\n"
        "logger.debug('nothing'); assert 'loguru' not in sys.modules and 'asyncio' not in sys.modules, 'too early'\n"
        "logger.warning('hello {}', 1); assert 'loguru' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "wherry: warning: hello 1\n"

"""Lines of a Dockerfile that change an image's config."""

from __future__ import annotations

from typing import Any

import pytest

from wherry.api import Invalid
from wherry.spec.changes import changed


@pytest.mark.parametrize(
    ("lines", "config"),
    [
        (['CMD ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
        (["cmd echo $HOME"], {"Cmd": ["/bin/sh", "-c", "echo $HOME"]}),
        (["ENTRYPOINT [not json"], {"Entrypoint": ["/bin/sh", "-c", "[not json"]}),
        (["ENV A=1 B='two words'", "ENV A=3"], {"Env": ["B=two words", "A=3"]}),
        (["ENV OLD form of it"], {"Env": ["OLD=form of it"]}),
        (["LABEL a.b=c", 'LABEL d="e f"'], {"Labels": {"a.b": "c", "d": "e f"}}),
        (["EXPOSE 80 53/udp 8000-8010/tcp"], {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000-8010/tcp": {}}}),
        (['VOLUME ["/a b"]', "VOLUME /c /d"], {"Volumes": {"/a b": {}, "/c": {}, "/d": {}}}),
        (["WORKDIR /a", "WORKDIR b"], {"WorkingDir": "/a/b"}),
        (["USER 7:8", "STOPSIGNAL SIGINT"], {"User": "7:8", "StopSignal": "SIGINT"}),
        (["ONBUILD RUN a", "ONBUILD RUN b"], {"OnBuild": ["RUN a", "RUN b"]}),
    ],
)
def test_each_instruction(lines: list[str], config: dict[str, Any]) -> None:
    assert changed({}, tuple(lines)) == config


def test_what_was_there_stays() -> None:
    before = {"Env": ["PATH=/bin", "A=1"], "Labels": {"x": "y"}, "User": "me"}
    after = changed(before, ("ENV A=2", "LABEL z=1"))
    assert after == {"Env": ["PATH=/bin", "A=2"], "Labels": {"x": "y", "z": "1"}, "User": "me"}
    assert before == {"Env": ["PATH=/bin", "A=1"], "Labels": {"x": "y"}, "User": "me"}


@pytest.mark.parametrize(
    "line", ["RUN rm -rf /", "", "CMD", "ENV A", "ENV =b", "LABEL a=b c", "EXPOSE eighty", "VOLUME 'open", "ENV A='x"]
)
def test_what_is_refused(line: str) -> None:
    with pytest.raises(Invalid, match="change"):
        changed({}, (line,))

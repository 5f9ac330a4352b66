"""Contributions: adjusters with owners, validators, listeners, credentials, gc roots, verifiers; one that fails hides no other."""

from __future__ import annotations

import builtins
import copy
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.distributions import Distributions, distributions, eventually  # noqa: F401
from wherry.api import DeadlineExceeded, Denied, Descriptor, Digest, Event, InUse, PluginFault, RunRequest
from wherry.kernel import contributions
from wherry.kernel.merge_patch import fold, pointer

REQUEST = RunRequest(image="busybox")
TARGET = Descriptor("application/vnd.oci.image.manifest.v1+json", Digest("sha256:0"), 1)
HOOK = "from wherry.api import hookimpl\nimport builtins, time\n@hookimpl\ndef {hook}({arguments}):\n    {body}\n"
HOOKS = {
    "adjust": ("wherry_adjust_spec", "spec, request"),
    "validate": ("wherry_validate_spec", "spec, owners"),
    "listen": ("wherry_event", "event"),
    "credentials": ("wherry_credentials", "host"),
    "gcroots": ("wherry_gc_roots", ""),
    "verify": ("wherry_verify_image", "name, target"),
}


class Maker:
    def __init__(self, distributions: Distributions) -> None:  # noqa: F811
        self.distributions = distributions
        distributions.standard()

    def add(self, family: str, id: str, body: str) -> None:
        hook, arguments = HOOKS[family]
        module = f"hook_{family}_{id}"
        source = HOOK.format(hook=hook, arguments=arguments, body=body)
        self.distributions.add({f"{family}.{id}": module}, {module: source})

    def kernel(self, text: str = "") -> Any:
        return self.distributions.kernel(text)


@pytest.fixture
def make(distributions: Distributions) -> Maker:  # noqa: F811
    return Maker(distributions)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    log: list[Any] = []
    monkeypatch.setattr(builtins, "wherry_test_seen", log, raising=False)
    return log


SPEC = {"process": {"env": ["A=1"], "args": ["sh"]}, "root": {"readonly": False}, "a/b": {"c~d": 1}}


class TestAdjust:
    def test_fields_and_owners(self, make: Maker) -> None:
        make.add("adjust", "env", "return {'process': {'env': [*spec['process']['env'], 'TZ=UTC']}}")
        make.add(
            "adjust", "root", "return {'root': {'readonly': True}, 'a/b': {'c~d': None}, 'process': {'args': ['sh']}}"
        )
        make.add("adjust", "nothing", "return None")
        before = copy.deepcopy(SPEC)
        spec, owners = make.kernel().adjust(SPEC, REQUEST)
        assert spec["process"]["env"] == ["A=1", "TZ=UTC"]
        assert spec["root"] == {"readonly": True}
        assert spec["a/b"] == {}
        assert owners == {
            "/process/env": "adjust.env",
            "/root/readonly": "adjust.root",
            "/a~1b/c~0d": "adjust.root",
        }, "what was set to what it was has no new owner"
        assert before == SPEC

    def test_order(self, make: Maker) -> None:
        for id in ("a", "b", "c"):
            make.add("adjust", id, f"return {{'order': [*spec.get('order', []), '{id}']}}")
        spec, owners = make.kernel('[engine]\nadjusters = ["c"]').adjust(SPEC, REQUEST)
        assert spec["order"] == ["c", "a", "b"]
        assert owners == {"/order": "adjust.b"}

    def test_an_adjuster_can_t_change_what_it_is_given(self, make: Maker) -> None:
        make.add("adjust", "evil", "spec['process']['args'] = ['evil']; return None")
        spec, owners = make.kernel().adjust(SPEC, REQUEST)
        assert (spec, owners) == (SPEC, {})

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ("1 / 0", "plugin adjust.bad: raised ZeroDivisionError: division by zero"),
            ("raise SystemExit(2)", "plugin adjust.bad: raised SystemExit: 2"),
            ("return 5", "plugin adjust.bad: returned int, not a mapping or None"),
            ("return {'a': object()}", "plugin adjust.bad: its patch is not JSON: object at /a"),
            ("return {1: 2}", "plugin adjust.bad: its patch is not JSON: the key 1 is no string"),
            ("return {'a': {'b': {1: 2}}}", "plugin adjust.bad: its patch is not JSON: the key 1 is no string"),
            (
                "d = {}; d['a'] = d; return d",
                "plugin adjust.bad: its patch is not JSON: maximum recursion depth exceeded",
            ),
        ],
    )
    def test_one_that_fails_refuses(self, make: Maker, body: str, text: str) -> None:
        make.add("adjust", "bad", body)
        with pytest.raises(PluginFault) as caught:
            make.kernel().adjust(SPEC, REQUEST)
        assert str(caught.value).startswith(text)
        assert caught.value.plugin == "adjust.bad"

    def test_its_own_errors_pass(self, make: Maker) -> None:
        make.add("adjust", "bad", "from wherry.api import InUse; raise InUse('device', 'taken')")
        with pytest.raises(InUse) as caught:
            make.kernel().adjust(SPEC, REQUEST)
        assert caught.value.plugin == "adjust.bad"

    def test_one_that_hangs(self, make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
        block = threading.Event()
        monkeypatch.setattr(builtins, "wherry_test_block", block, raising=False)
        make.add("adjust", "bad", "builtins.wherry_test_block.wait()")
        kernel = make.kernel("[engine]\ndeadline = 0.2")
        with pytest.raises(DeadlineExceeded, match=r"plugin adjust.bad: did not return within 0.2 s"):
            kernel.adjust(SPEC, REQUEST)
        assert [info.lost_threads for info in kernel.plugins() if info.id == "bad"] == [1]
        block.set()

    def test_nobody_adjusts(self, make: Maker) -> None:
        assert make.kernel().adjust(SPEC, REQUEST) == (SPEC, {})


class TestMergePatch:
    @pytest.mark.parametrize(
        ("target", "patch", "result"),
        [  # RFC 7396, appendix A, the cases whose patch is an object
            ({"a": "b"}, {"a": "c"}, {"a": "c"}),
            ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
            ({"a": "b"}, {"a": None}, {}),
            ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
            ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
            ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
            ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
            ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
            ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
            ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ],
    )
    def test_the_examples_of_the_standard(self, target: Any, patch: Any, result: Any) -> None:
        assert fold(target, patch, "me", {}) == result

    def test_owners_below_a_replaced_object_are_forgotten(self) -> None:
        owners: dict[str, str] = {}
        spec = fold({}, {"a": {"b": 1, "c": 2}}, "one", owners)
        spec = fold(spec, {"a": {"b": 3}}, "two", owners)
        assert owners == {"/a/b": "two", "/a/c": "one"}
        fold(spec, {"a": 5}, "three", owners)
        assert owners == {"/a": "three"}

    def test_true_is_not_one(self) -> None:
        owners: dict[str, str] = {}
        assert fold({"a": 1}, {"a": True}, "me", owners)["a"] is True
        assert owners == {"/a": "me"}

    json = st.recursive(
        st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )

    @given(
        st.dictionaries(st.text(max_size=3), json, max_size=4), st.dictionaries(st.text(max_size=3), json, max_size=4)
    )
    def test_every_owner_points_at_something(self, target: dict[str, Any], patch: dict[str, Any]) -> None:
        owners: dict[str, str] = {}
        result = fold(target, patch, "me", owners)
        for path in owners:
            value: Any = result
            for part in path.split("/")[1:]:
                value = value[part.replace("~1", "/").replace("~0", "~")]
        assert fold(result, patch, "again", {}) == result, "a second time changes nothing"

    def test_pointers(self) -> None:
        assert pointer("a/b", "c~d", "") == "/a~1b/c~0d/"


class TestValidate:
    def test_a_reason_refuses(self, make: Maker) -> None:
        make.add("validate", "fine", "return None")
        make.add("validate", "policy", "return None if spec['root']['readonly'] else 'policy wants a read-only root'")
        kernel = make.kernel()
        kernel.validate({"root": {"readonly": True}}, {})
        with pytest.raises(Denied) as caught:
            kernel.validate(SPEC, {"/root/readonly": "adjust.x"})
        assert str(caught.value) == "container: policy wants a read-only root; refused by the plugin validate.policy"

    def test_one_that_fails_refuses_too(self, make: Maker) -> None:
        make.add("validate", "bad", "return 5")
        with pytest.raises(PluginFault, match=r"plugin validate.bad: returned int, not a string or None"):
            make.kernel().validate(SPEC, {})


class TestListen:
    def test_in_order_and_apart(self, make: Maker, seen: list[Any]) -> None:
        make.add("listen", "bad", "raise SystemExit(3)")
        make.add("listen", "good", "builtins.wherry_test_seen.append(event.id)")
        kernel = make.kernel()
        for number in range(100):
            kernel.notify(Event("task.exited", str(number), 1))
        eventually(lambda: len(seen) == 100)
        assert seen == [str(number) for number in range(100)]

    def test_a_slow_one_delays_nobody(self, make: Maker, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        block = threading.Event()
        monkeypatch.setattr(builtins, "wherry_test_block", block, raising=False)
        monkeypatch.setattr(contributions, "QUEUE", 10)
        make.add("listen", "slow", "builtins.wherry_test_block.wait()")
        make.add("listen", "good", "builtins.wherry_test_seen.append(event.id)")
        kernel = make.kernel()
        for number in range(50):
            kernel.notify(Event("task.exited", str(number), 1))
            eventually(lambda: len(seen) == number + 1)  # noqa: B023 called at once
        assert 39 <= kernel._listeners.dropped()["listen.slow"] <= 40
        block.set()

    def test_close_delivers_what_is_queued(self, make: Maker, seen: list[Any]) -> None:
        make.add("listen", "good", "time.sleep(0.01); builtins.wherry_test_seen.append(event.id)")
        kernel = make.kernel()
        for number in range(10):
            kernel.notify(Event("x", str(number), 1))
        kernel.close()
        assert len(seen) == 10


class TestAnswers:
    def test_credentials(self, make: Maker) -> None:
        make.add("credentials", "a", "raise ValueError('no')")
        make.add("credentials", "b", "return 5")
        make.add("credentials", "c", "return None")
        make.add("credentials", "d", "return ('robot', 's3cret') if host == 'r:5000' else None")
        kernel = make.kernel()
        assert kernel.credentials("r:5000") == ("robot", "s3cret")
        assert kernel.credentials("other") is None

    def test_gc_roots(self, make: Maker) -> None:
        make.add("gcroots", "a", "return ['blob/sha256:1', 'blob/sha256:2']")
        make.add("gcroots", "b", "return {'blob/sha256:2'}")
        assert make.kernel().gc_roots() == {"blob/sha256:1", "blob/sha256:2"}

    @pytest.mark.parametrize("body", ["1 / 0", "return 'blob/x'", "return None", "return [1]"])
    def test_gc_waits_for_roots_that_fail(self, make: Maker, body: str) -> None:
        make.add("gcroots", "a", body)
        with pytest.raises(PluginFault):
            make.kernel().gc_roots()

    def test_verify(self, make: Maker) -> None:
        make.add("verify", "signed", "return None if name == 'good' else 'no signature'")
        kernel = make.kernel()
        kernel.verify("good", TARGET)
        with pytest.raises(Denied, match=r'image "bad": no signature; refused by the plugin verify.signed'):
            kernel.verify("bad", TARGET)

    def test_states(self, make: Maker) -> None:
        make.add("verify", "fine", "return None")
        make.distributions.add({"verify.broken": "broken"}, {"broken": "1 / 0"})
        states = {info.id: (info.state, info.reason) for info in make.kernel().plugins() if info.family == "verify"}
        assert states["fine"] == ("available", "")
        assert states["broken"][0] == "failed"
        assert "importing broken raised ZeroDivisionError" in states["broken"][1]

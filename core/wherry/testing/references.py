"""What every image store must do with names: point, move, compare and swap, list."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from wherry.errors import FailedPrecondition, NotFound
from wherry.interfaces.common import Descriptor, Digest
from wherry.interfaces.store import Store
from wherry.testing.contract import Contract
from wherry.testing.harness import Harness

NAME = "registry.example/library/thing:latest"
ABSENT = Digest("sha256:" + "0" * 64)


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def descriptor_of(data: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", digest_of(data), len(data))


class References(Contract):
    """The clauses of a store that are about references."""

    def test_tag_and_resolve(self, driver: Store) -> None:
        target = descriptor_of(b"manifest")
        image = driver.tag(NAME, target, {"from": "test"})
        assert (image.name, image.target, dict(image.labels)) == (NAME, target, {"from": "test"})
        assert driver.resolve(NAME) == image
        assert image.updated > 10**18, "updated is in nanoseconds since the epoch"
        with pytest.raises(NotFound):
            driver.resolve(NAME + "r")

    def test_descriptor_is_kept_whole(self, driver: Store) -> None:
        target = Descriptor("application/vnd.oci.image.index.v1+json", ABSENT, 77, {"note": "é"}, "linux/arm64/v8")
        driver.tag(NAME, target, {})
        assert driver.resolve(NAME).target == target

    def test_tag_moves(self, driver: Store) -> None:
        driver.tag(NAME, descriptor_of(b"old"), {"old": "1"})
        driver.tag(NAME, descriptor_of(b"new"), {})
        assert driver.resolve(NAME).target == descriptor_of(b"new")
        assert len(list(driver.list())) == 1

    def test_tag_compares_and_swaps(self, driver: Store) -> None:
        old, new = descriptor_of(b"old"), descriptor_of(b"new")
        driver.tag(NAME, old, {})
        with pytest.raises(FailedPrecondition):
            driver.tag(NAME, new, {}, expected=new.digest)
        assert driver.resolve(NAME).target == old
        driver.tag(NAME, new, {}, expected=old.digest)
        assert driver.resolve(NAME).target == new

    def test_one_swap_wins(self, driver: Store) -> None:
        old = descriptor_of(b"old")
        driver.tag(NAME, old, {})

        def swap(index: int) -> bool:
            try:
                driver.tag(NAME, descriptor_of(b"new %d" % index), {}, expected=old.digest)
            except FailedPrecondition:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(swap, range(24))) == 1

    def test_untag_is_idempotent(self, driver: Store) -> None:
        driver.tag(NAME, descriptor_of(b"x"), {})
        driver.untag(NAME)
        driver.untag(NAME)
        with pytest.raises(NotFound):
            driver.resolve(NAME)
        assert list(driver.list()) == []

    def test_untag_compares(self, driver: Store) -> None:
        target = descriptor_of(b"x")
        driver.tag(NAME, target, {})
        with pytest.raises(FailedPrecondition):
            driver.untag(NAME, expected=ABSENT)
        assert driver.resolve(NAME).target == target
        driver.untag(NAME, expected=target.digest)
        with pytest.raises(NotFound):
            driver.resolve(NAME)

    def test_list_takes_a_prefix(self, driver: Store) -> None:
        names = ["a.example/x:1", "a.example/x:2", "a%example/x:1", "b.example/x:1"]
        for name in names:
            driver.tag(name, descriptor_of(name.encode()), {})
        assert sorted(image.name for image in driver.list("a.example/")) == names[:2]
        assert sorted(image.name for image in driver.list("a%")) == names[2:3], "% is a plain character"
        assert sorted(image.name for image in driver.list()) == sorted(names)

    def test_references_survive_reopening(self, driver: Store, harness: Harness[Store]) -> None:
        image = driver.tag(NAME, descriptor_of(b"x"), {"a": "b"})
        assert harness.reopen().resolve(NAME) == image

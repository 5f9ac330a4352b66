"""Ids and names of containers."""

from __future__ import annotations

import secrets

#: Boats, rivers and what sails on them: a wherry is a light boat that carried passengers and goods.
_FIRST = (
    "able", "amber", "ashore", "balmy", "bold", "bonny", "brisk", "buoyant", "calm", "candid", "clear", "coastal", "coral",
    "dapper", "dauntless", "deep", "drifting", "eager", "easterly", "ebbing", "fair", "fleet", "floating", "foamy", "free",
    "gentle", "gilded", "glassy", "hardy", "hearty", "homeward", "idle", "jaunty", "jolly", "keen", "lively", "lofty",
    "lucky", "mellow", "merry", "misty", "moonlit", "nimble", "northern", "outbound", "patient", "placid", "plucky",
    "polished", "quiet", "ready", "rippling", "roving", "rushing", "salty", "silver", "snug", "sound", "southern", "spry",
    "stately", "steady", "sturdy", "sunlit", "swift", "tidal", "trim", "trusty", "upriver", "westerly", "windy", "wise",
)  # fmt: skip
_SECOND = (
    "albatross", "anchor", "barge", "beacon", "bosun", "brig", "buoy", "canoe", "capstan", "clipper", "cockle", "compass",
    "coracle", "cormorant", "cove", "curlew", "cutter", "delta", "dinghy", "dory", "eddy", "estuary", "felucca", "fender",
    "ferry", "fjord", "galley", "gannet", "gig", "grebe", "gull", "gunwale", "halyard", "harbour", "heron", "hoy", "inlet",
    "jetty", "junk", "kayak", "keel", "kelpie", "ketch", "kittiwake", "lagoon", "lantern", "lighter", "lock", "lugger",
    "mallard", "mooring", "oar", "osprey", "otter", "packet", "paddle", "pelican", "petrel", "pier", "pinnace", "plover",
    "pontoon", "punt", "quay", "reach", "reed", "rudder", "sandbar", "schooner", "scull", "shoal", "skerry", "skiff",
    "sloop", "spar", "sprit", "tern", "thames", "tiller", "trawler", "tug", "weir", "wharf", "yawl",
)  # fmt: skip


def new_id() -> str:
    """64 hex digits. The first twelve are never all decimal digits: such a short id would read as a number."""
    while (id := secrets.token_hex(32))[:12].isdecimal():
        pass
    return id


def random_name(attempt: int = 0) -> str:
    """Two words; from the third attempt on with a number behind them."""
    name = f"{secrets.choice(_FIRST)}_{secrets.choice(_SECOND)}"
    return name if attempt < 3 else f"{name}{secrets.randbelow(10**attempt)}"

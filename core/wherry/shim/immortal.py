"""Objects that nobody counts any more: what a shim imports stays for good, so that its children need no pages of their own for it.

A clone shares every page until one side writes to it, and CPython writes to an object whenever it is used: its count of references.
From 3.12 on there are immortal objects, whose count is left alone (PEP 683, which was made for this), though no call that makes them.
The mark is read off None, which is one. Without it, on 3.11 and on builds with another layout, nothing is changed.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import types

_SIGN = 1 << 31  # of the 32 bits that hold the count: what is immortal is negative there
_ROOM = 1 << 28


def mark() -> int:
    """The count to give an object that shall be immortal; 0 where this interpreter has none that are known here.

    From 3.14 on there is room above None's own count, which is the least that nothing is added to: a reference that was on the
    interpreter's stack when its object became immortal is still taken from its count, as it was when it was put there.
    """
    if sys.implementation.name != "cpython" or sys.version_info < (3, 12) or sys.byteorder != "little":
        return 0
    found = ctypes.c_uint32.from_address(id(None)).value
    # a build without a GIL has something else there, and one for 32 bits a smaller count
    if not found & _SIGN or sys.getrefcount(None) & 0xFFFFFFFF != found:
        return 0
    return min(found + _ROOM, 0xFFFFFFFF)


def immortalize() -> int:
    """Makes everything immortal that the collector knows, and what it refers to; how many objects that were.

    For a process that ends by exec or _exit, and before it has anything that is to be freed: none of it ever is.
    """
    immortal = mark()
    if not immortal:
        return 0
    count = 0
    at = ctypes.c_uint32.from_address
    left = gc.get_objects()
    while left:
        item = left.pop()
        word = at(id(item))
        if word.value & _SIGN or isinstance(item, types.FrameType):
            continue
        word.value = immortal
        count += 1
        left.extend(gc.get_referents(item))
        if isinstance(item, types.CodeType):  # the collector does not know what it holds
            left += (item.co_consts, item.co_names)
    return count

"""What drivers build on, bundled and foreign alike.

A bundled plugin imports from ``wherry.api``, ``wherry.spec``, ``wherry.testing`` and from here, and no name that is not in a module's
``__all__``: what it could do, any other can. docs/reference/kit.md lists it all.
"""

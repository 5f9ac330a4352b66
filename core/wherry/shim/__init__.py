"""The resident parent of containers and its logger: tiny, single-threaded, standard library only, no plugin code.

``launch`` starts it, ``main`` is the process, ``logger`` its child. Nothing here imports wherry.errors or attrs: an error travels
as its class name and four strings, and the engine's client (wherry.engine.shim.client) makes it an exception again.
"""

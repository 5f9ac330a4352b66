"""netd: one process for all containers on bridges of an engine: packet filter rules, published ports, names.

The engine's side is ``client``; all other modules run in netd's own process (``main``), which imports nothing but the standard
library, ``wherry.linux`` and dnslib.
"""

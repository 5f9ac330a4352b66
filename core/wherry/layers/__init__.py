"""The OCI layer rules (OCI image-spec, layer.md): reading and writing layer archives, applying and diffing trees.

``apply`` unpacks one layer into a tree by a root descriptor; ``diff`` writes the layer between two trees; ``archive`` reads tar
as the rules need it, ``writer`` writes it; ``compression`` undoes gzip and zstd within bounds; ``paths`` resolves names inside a
root and never outside; ``worker`` is the process that does it. ``snapshots`` and ``database`` keep a snapshotter's rows.
Modules that a worker loads use the standard library only, apart from the two decompressors.
"""

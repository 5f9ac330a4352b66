"""What snapshotters that keep one directory a snapshot have in common."""

"""Images: fetched, unpacked, listed, saved and collected."""

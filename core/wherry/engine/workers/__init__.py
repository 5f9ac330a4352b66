"""The processes that unpack, read, diff and measure for the engine."""

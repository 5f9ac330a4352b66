"""One module a command or noun, imported at its first use."""

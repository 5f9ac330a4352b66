"""The engine's side of the shim."""

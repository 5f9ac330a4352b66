"""engine.sock: the engine as a service, and how other processes reach it."""

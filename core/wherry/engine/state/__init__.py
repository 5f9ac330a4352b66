"""What the engine knows and must not forget: database, events, leases and locks."""

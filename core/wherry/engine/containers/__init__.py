"""Containers: made, started, looked at, and what follows when they end."""

"""Volumes: what of a container outlives it."""

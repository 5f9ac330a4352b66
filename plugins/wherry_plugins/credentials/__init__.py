"""Credentials for registries, one module a source."""

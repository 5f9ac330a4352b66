"""The typed contract, one file a kind: plugins and front ends import all of it from ``wherry.api``."""

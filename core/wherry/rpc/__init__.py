"""The Protocols of the contract over a socket: drivers in processes of their own, and ``wherry.connect``."""

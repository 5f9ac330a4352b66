"""Plugins for Wherry from outside its tree: they know wherry.api, wherry.oci and nothing else of it."""

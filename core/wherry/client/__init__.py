"""The thin client: ``wherry`` is the script on PATH, ``hot`` talks to a running engine, ``cold`` does all else."""

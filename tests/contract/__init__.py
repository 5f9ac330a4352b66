"""The contract suites: on the bundled drivers, on reference drivers, and on drivers broken on purpose."""

"""What the tests share: namespaces around a test process, the search for leaks, images made on the spot."""

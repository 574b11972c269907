"""qserve beside its peers, and beside bare loops, in one run: `python -m tests.bench`."""

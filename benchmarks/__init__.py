"""How fast semivid is, against the plain way of doing the same. See `python -m benchmarks --help`."""

"""One file an item: `run(context)` measures its parts one after the other."""

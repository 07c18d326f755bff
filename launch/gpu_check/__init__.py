"""The first minutes on a GPU: what works, what is right, how fast it is (docs/gpu.md)."""

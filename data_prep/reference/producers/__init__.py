"""What computes the rows of a cache: a forward pass, one of a sharded model, vLLM. Imports no torch."""

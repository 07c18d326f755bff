"""What every package may import: files, digests, processes, Ray, models. Imports no torch, Ray or verl by itself."""

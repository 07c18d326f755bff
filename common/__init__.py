"""What every package may import: files, digests, processes, Ray, model files. Imports no torch, Ray or verl by itself."""

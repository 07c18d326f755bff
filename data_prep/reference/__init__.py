"""The reference cache: what a frozen model says about every training response, on disk. Imports no torch."""

"""The stages of a recipe as a graph."""

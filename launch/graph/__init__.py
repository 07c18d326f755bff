"""From the branches of a recipe to one graph of stages, each once: plan, selection, costs."""

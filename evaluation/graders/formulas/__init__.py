"""Formulas as models and references write them: text to values, and whether two values are the same, exactly."""

"""SFT inside verl's trainer: the stage, its processes, and the objective in each of them. No torch here."""

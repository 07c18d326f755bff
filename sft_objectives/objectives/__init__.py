"""One file per objective, found by its name; other files hold what several are composed of. Imports no torch."""

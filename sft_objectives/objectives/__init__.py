"""One file per objective; `weighted` and `residuals` hold what several are composed of. Imports no torch."""

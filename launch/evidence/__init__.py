"""A study's evidence: what its runs measured as one CSV, and all that is computed from that alone."""

"""The recipe: sections, types, defaults, checks, and how Hydra's files and overrides become one."""

"""Stages as processes: the driver's job on a node, the guard above the child, the child that calls the function."""

"""Ray's Python workers as forks of one process that has imported what they need, instead of one import each.

`start` runs the server, `client.py` is what Ray starts in a worker's place, `server.py` forks.
"""

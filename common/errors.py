"""The error that a user can mend, and the end of a run that is to be continued."""


class ConfigError(ValueError):
    """A wrong configuration or wrong data; one line that names the file or field, what is allowed and the remedy.

    It is never retried. Every other exception, a library's ValueError included, is a fault.
    """


class Paused(Exception):
    """A stage has come to the step at which it was to pause; what it needs to go on is in its scratch directory."""

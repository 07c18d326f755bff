"""The error that a user can mend."""


class ConfigError(ValueError):
    """A wrong configuration or wrong data; one line that names the file or field, what is allowed and the remedy.

    It is never retried. Every other exception, a library's ValueError included, is a fault.
    """

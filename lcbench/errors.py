"""The one exception that is the user's to fix."""


class ConfigurationError(ValueError):
    """A mistake in what was asked for: one sentence that names the key, the value and the closest valid choice.

    The command line prints the sentence alone and exits with 2; it never shows a traceback for it.
    """

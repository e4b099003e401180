"""The errors a user of the engine may cause."""


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it, its value and what would do."""


class CheckpointError(ValueError):
    """A weights file does not fit; the message names the file, the difference and the next step."""

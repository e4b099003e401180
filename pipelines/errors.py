"""The error a user of the data path may cause."""


class DataError(ValueError):
    """Something about the files is wrong; the message names the file or value and the next step."""

"""The error a user of the data path may cause."""


class DataError(ValueError):
    """Something about the files is wrong; the message names the file or value and the next step.

    Attributes:
        kind: one word for summaries, such as ``missing``, ``damaged``, ``size`` or ``label``.
    """

    def __init__(self, message: str, kind: str = "data") -> None:
        super().__init__(message)
        self.kind = kind

"""The error of this package, and how it quotes another."""


class DataError(RuntimeError):
    """Data are missing, damaged or misnamed: one sentence with what was expected, what was got
    and what to do."""


class DownloadError(DataError):
    """Data that could not be reached; what was reached is not in question."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters, to quote in a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__

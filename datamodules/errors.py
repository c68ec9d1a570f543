"""The error of this package."""


class DataError(RuntimeError):
    """Data are missing, damaged or misnamed: one sentence with what was expected, what was got
    and what to do."""

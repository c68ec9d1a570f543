"""Options that are positive whole numbers."""

from datamodules.errors import DataError


def check_count(option: str, value: object, *, optional: bool = False) -> None:
    """Refuse what is no positive whole number; None passes where it is optional.

    Args:
        option: as a user types it, such as data.window.history.
    """
    if optional and value is None:
        return
    if not isinstance(value, int) or value < 1:
        null = " or null" if optional else ""
        raise DataError(f"{option} is a positive whole number{null}, got {value}.")

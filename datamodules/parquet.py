"""Parquet files that may be damaged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from datamodules.errors import DataError, one_line


@contextmanager
def readable(path: Path, what: str) -> Iterator[ModuleType]:
    """`pyarrow.parquet`, to read a file of `what` with.

    Raises:
        DataError: what was done with it failed.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Expected a parquet file of {what} at {path}, but it cannot be read "
            f"({one_line(error)}): download it again."
        ) from error


def count_rows(path: Path, what: str) -> int:
    """The number of rows of a file of `what`, from its last bytes.

    Raises:
        DataError: it cannot be read.
    """
    with readable(path, what) as parquet:
        return parquet.read_metadata(path).num_rows

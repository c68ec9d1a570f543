"""Files from the network: complete and checked, or absent."""

import hashlib
import http.client
import logging
import os
import shutil
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from datamodules.errors import DataError, DownloadError, one_line

_log = logging.getLogger(__name__)


def download(url: str, path: Path, md5: str | None = None) -> None:
    """Download to a temporary file, check its MD5 (32 hex digits), then rename it to `path`.

    Raises:
        DataError: no connection, or another checksum; nothing is left at `path` then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _log.info("Downloading %s.", url)
    try:
        with urlopen(url, timeout=30) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
    except (OSError, http.client.HTTPException) as error:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"Cannot download {url} ({one_line(error)}): connect to the network, or set DATA_DIR "
            "to a folder that holds the official files."
        ) from error
    if md5 is not None:
        try:
            check_md5(part, md5)
        except DataError:
            part.unlink()
            raise
    os.replace(part, path)


def reach(url: str) -> None:
    """Make sure that a server answers.

    Raises:
        DownloadError: it does not.
    """
    try:
        with urlopen(url, timeout=10):
            pass
    except HTTPError:
        pass  # an answer
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"Cannot reach {url} ({one_line(error)}): connect to the network, or set DATA_DIR to a "
            "folder that holds the data."
        ) from error


def check_md5(path: Path, md5: str) -> None:
    """Compare a file's MD5 with the 32 hex digits that are expected.

    Raises:
        DataError: they differ.
    """
    got = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if got != md5:
        raise DataError(
            f"Expected {path} with MD5 {md5}, got {got}: the file is damaged or not the official "
            "one, delete it and download it again."
        )

"""Data sets of Hugging Face's hub."""

import os
from typing import Any

from datamodules.download import reach
from datamodules.errors import DownloadError


def hub_datasets(what: str) -> Any:
    """The package `datasets`, once its hub can be reached.

    Raises:
        DownloadError: it cannot, or the package is not installed.
    """
    # datasets itself would try for half a minute.
    reach(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        import datasets
    except ImportError as error:
        raise DownloadError(
            f"{what} is downloaded by the package datasets, which is not installed: "
            "pip install '.[language]'."
        ) from error
    return datasets

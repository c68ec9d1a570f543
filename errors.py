"""Errors that a user can cause, each told in one sentence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import DataError
from kernels.autograd import FirstDerivativesOnlyError
from lit_models.module import NonFiniteError, UnfitDataError


class UserError(RuntimeError):
    """What was expected, what was got, and what to do, in one sentence."""


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print the user's errors as one sentence and exit with 1; let bugs keep their traceback."""
    # Hydra prints its own version of errors and exits unless told to raise them.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except SIGTERMException:
        sys.exit("Stopped by SIGTERM: `make resume RUN=…` goes on from the last checkpoint.")
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def explain(error: BaseException) -> str | None:
    """One sentence for an error that a user can cause, None for a bug."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        # Hydra wraps what a constructor raised: a value that it refused is the user's to change.
        refused = isinstance(error.__cause__, ValueError)
        return first_line(error.__cause__) if refused else explain(error.__cause__)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options or ()) or "none"
        return f"there is no {group} {name!r} in configs/{group}: choose one of {options}."
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__
        while cause is not None:
            if isinstance(cause, UserError):
                return str(cause)
            cause = cause.__cause__
        return first_line(error)
    told = UserError | DataError | UnfitDataError | NonFiniteError
    told |= FirstDerivativesOnlyError | MisconfigurationException
    if isinstance(error, told):
        return str(error)
    return None


def first_line(error: BaseException) -> str:
    """The part of a configuration error that says what is wrong."""
    return str(error).strip().splitlines()[0]

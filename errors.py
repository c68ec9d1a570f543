"""Errors that a user can cause, each told in one sentence."""

import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import DataError
from kernels.autograd import FirstDerivativesOnlyError
from lit_models.module import NonFiniteError, UnfitDataError

FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS)
"""What the operating system says of a full disk, and of a place that may not be written."""
UNFIT = re.compile(r"got an unexpected keyword|missing (a|\d+) required|got multiple values")
QUOTES = "\"'"
NOISE = ("full_key:", "object_type=", "reference_type=", "See https://", "^")


class UserError(RuntimeError):
    """What was expected, what was got, and what to do, in one sentence."""


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print the user's errors as one sentence and exit with 1; let bugs keep their traceback."""
    # Hydra prints its own version of errors and exits unless told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # TensorBoard writes in a thread, and raises what went wrong there in the main one again.
    hook = threading.excepthook
    threading.excepthook = _only_bugs
    try:
        yield
    except SIGTERMException:
        sys.exit("Stopped by SIGTERM: `make resume RUN=…` goes on from the last checkpoint.")
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")
    finally:
        threading.excepthook = hook


def _only_bugs(args: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback unless it is an error that a user can cause."""
    if args.exc_value is None or explain(args.exc_value) is None:
        threading.__excepthook__(args)


def explain(error: BaseException) -> str | None:
    """One sentence for an error that a user can cause, None for a bug."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        # Hydra wraps what a constructor raised: a value that it refused is the user's to change.
        place = str(error).rpartition("full_key: ")[2].strip()
        if isinstance(error.__cause__, ImportError) and "Error locating target" in str(error):
            return f"{place}._target_ names nothing that can be imported: {_last(error.__cause__)}."
        if _is_unfit_call(error.__cause__):
            return f"{place} has other keys than these ({error.__cause__}): correct them."
        refused = isinstance(error.__cause__, ValueError)
        return first_line(error.__cause__) if refused else explain(error.__cause__)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options or ()) or "none"
        return f"there is no {group} {name!r} in configs/{group}: choose one of {options}."
    if isinstance(error, OverrideParseException) and "=" in error.override:
        key, _, value = error.override.partition("=")
        return (
            f"{error.override} cannot be read: put a value with spaces, letters beyond ASCII or "
            f"other signs in two kinds of quotes, '{key}=\"{value.strip(QUOTES)}\"'."
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__
        while cause is not None:
            if isinstance(cause, UserError):
                return str(cause)
            cause = cause.__cause__
        return sentence_of(error)
    told = UserError | DataError | UnfitDataError | NonFiniteError
    told |= FirstDerivativesOnlyError | MisconfigurationException
    if isinstance(error, told):
        return str(error)
    # What fails while a full disk is dealt with says nothing about the disk.
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in UNWRITABLE:
            return _unwritable(link)
        link = link.__cause__ or link.__context__
    return None


def _last(error: BaseException) -> str:
    """The error that an error was raised from in the first place, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".")


def _is_unfit_call(error: BaseException) -> bool:
    """Whether Hydra called something with keys of a config that it does not take."""
    if not (isinstance(error, TypeError) and UNFIT.search(str(error))):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    hydras = max((i for i, f in enumerate(frames) if f.name == "_call_target"), default=-1)
    # An unfit call that our own code makes is a bug.
    return not any(_is_ours(Path(frame.filename)) for frame in frames[hydras + 1 :])


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(Path(__file__).parent) and "site-packages" not in path.parts


def _unwritable(error: OSError) -> str:
    place = error.filename or "a file of this run"
    assert error.errno is not None  # but one of UNWRITABLE
    reason = os.strerror(error.errno)
    if error.errno in FULL:
        remedy = "free some space, or name folders elsewhere by runs_dir and data.cache_dir"
    else:
        remedy = "change its permissions, or name another folder by runs_dir or data.cache_dir"
    return f"{place} cannot be written or read ({reason}): {remedy}."


def sentence_of(error: BaseException) -> str:
    """What is wrong in a config and, where Hydra says it, what to do: one sentence of its lines."""
    lines = [line.strip() for line in str(error).splitlines()]
    # Of a parser and of OmegaConf, no news to a user; and a list of choices is read as one.
    lines = [line for line in lines if line and not line.startswith(NOISE)]
    text, told = lines[0], lines[1:]
    for number, line in enumerate(told):
        if line.startswith("Available options"):
            told[number:] = [f"choose one of {', '.join(told[number + 1 :])}"]
            break
    if not told:
        return text
    remedy = ", or ".join(_small(line.removeprefix("Or ")).rstrip("?.") for line in told)
    return f"{text.rstrip('.:')}: {remedy}."


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def first_line(error: BaseException) -> str:
    """The part of a configuration error that says what is wrong."""
    return str(error).strip().splitlines()[0]

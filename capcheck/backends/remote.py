"""Models on the Hugging Face hub: what is there, fetching it, and its errors in plain words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import errors

from capcheck.errors import ModelError, nearest

SECONDS = 15.0  # to wait for the hub's first answer


@dataclass(frozen=True)
class Listing:
    """A revision of a repository.

    Attributes:
        commit: its commit hash.
        sizes: the bytes of every file; empty where only the cache is at hand.
        parameters: how many the hub counted in its safetensors files, where it did.
        cached: the folder in the local cache, where the hub could not be asked.
        note: why the cache was used, for the user.
    """

    commit: str
    sizes: dict[str, int]
    parameters: int | None = None
    cached: Path | None = None
    note: str = ""


def listing(name: str, revision: str | None) -> Listing:
    """Return what the hub, or the local cache where it cannot be reached, has of a model.

    Raises:
        ModelError: the model or revision does not exist, may not be read, or cannot be reached.
    """
    with _explained(name, revision):
        try:
            info = hub.HfApi().model_info(
                name, revision=revision, files_metadata=True, timeout=SECONDS
            )
        except Exception as error:
            if not _unreachable(error):
                raise
            return _cached(name, revision, error)
        counted = getattr(info.safetensors, "total", None)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        return Listing(str(info.sha), sizes, counted)


def fetch(name: str, commit: str, files: Sequence[str]) -> Path:
    """Download files of a commit, or find them in the cache, and return their folder.

    Raises:
        ModelError: they cannot be had.
    """
    # A bar is of use to a person who waits, and noise in a log.
    show = sys.stderr.isatty()
    hidden = hub.utils.are_progress_bars_disabled()
    if not show:
        hub.utils.disable_progress_bars()
    try:
        with _explained(name, commit):
            return Path(hub.snapshot_download(name, revision=commit, allow_patterns=list(files)))
    finally:
        if not show and not hidden:
            hub.utils.enable_progress_bars()


def _cached(name: str, revision: str | None, reason: Exception) -> Listing:
    try:
        config = hub.hf_hub_download(name, "config.json", revision=revision, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        raise reason from None
    folder = Path(config).parent
    why = "is set to offline" if isinstance(reason, errors.OfflineModeIsEnabled) else "is away"
    note = f"the hub {why}; using commit {folder.name[:12]} of {name} from the local cache"
    return Listing(folder.name, {}, None, folder, note)


def _unreachable(error: Exception) -> bool:
    if isinstance(error, errors.HfHubHTTPError):
        # The hub itself is in trouble (5xx); any other status is an answer.
        return getattr(error.response, "status_code", 500) >= 500
    # The HTTP library differs between versions of the hub's client.
    library = type(error).__module__.split(".")[0]
    return isinstance(error, OSError) or library in {"httpx", "httpx2", "httpcore", "requests"}


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn every error of the hub's client into one sentence and a remedy."""
    meant = nearest(name, ["reference"])  # the one name that is no folder and no id
    try:
        yield
    except ModelError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its terms on its hub page, then log in (hf auth login) "
            "or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no folder {name!r}{meant} and no such model on the hub; correct the name, "
            "or log in (hf auth login) if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{name} has no revision {revision!r} on the hub; give a branch, tag or full commit"
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a folder that exists nor a hub id (OWNER/NAME); correct it"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelError(
            f"{name}{meant} is not in the local cache and HF_HUB_OFFLINE is set; unset it, "
            "or give a folder"
        ) from error
    except Exception as error:
        if not _unreachable(error):
            first = str(error).strip().partition("\n")[0]
            raise ModelError(f"the hub refused {name}: {first}; try again later") from error
        raise ModelError(
            f"there is no folder {name!r}{meant}, and the hub cannot be reached to look for a "
            f"model of that name ({type(error).__name__}); check the network, or give a folder"
        ) from error

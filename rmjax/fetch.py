"""Repositories of the hub: from huggingface_hub's cache, and from the network only where the environment asks for it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

DOWNLOAD = "RMJAX_DOWNLOAD"
"""Set to 1, what the cache lacks is fetched from the hub; otherwise nothing is."""


def snapshot(
    repo: str, revision: str | None, files: Sequence[str], kind: Literal["model", "dataset"] = "model"
) -> Path | None:
    """The repository's folder in the cache; None where it is not there and is not to be fetched.

    Args:
      files: patterns of those that are fetched.

    Raises:
      FileNotFoundError: it is to be fetched, and the hub is out of reach or does not give it; the message says what it answered.
    """
    from huggingface_hub import snapshot_download  # slow to import, needed only here
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        here = Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        here = None
    if os.environ.get(DOWNLOAD, "") in ("", "0"):
        return here
    # Of what is there, the commit (its folder's name): a later one would be another model, and nobody asked for it.
    commit = here.name if here else revision
    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=list(files)))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{repo}: not in huggingface_hub's cache, and the hub is out of reach; try again with a network"
        ) from None
    except HfHubHTTPError as error:
        said = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{repo}: the hub does not give it ({said}); correct its name, or log in: hf auth login"
        ) from error


def included(files: Sequence[str]) -> str:
    """`hf download`'s options for these patterns."""
    return " ".join(f"--include '{pattern}'" if "*" in pattern else f"--include {pattern}" for pattern in files)

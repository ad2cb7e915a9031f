"""A proved export on the hub: the whole folder in one commit, in a repository that is private where this makes it."""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token

from mmtrain.errors import UserError


def check_name(name: str) -> None:
    """Raises UserError for what can be no repository's name, before anything is exported."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        wanted, fix = "a repository's name, as in org/name", "correct it"
        raise UserError("--push-to-hub", repr(name), wanted, fix)


def push(folder: Path, name: str) -> str:
    """Upload a folder; one that was exported stays where it is, whatever becomes of this.

    Args:
        folder: an export.
        name: ``org/name``, or a name alone for the user's own.

    Returns:
        The address of the repository.

    Raises:
        UserError: no token, no network, or the hub refuses.
    """
    where, kept = f"--push-to-hub {name}", f"the export is kept: `hf upload {name} {folder} .` sends it later"
    if get_token() is None:
        raise UserError(where, "no token", "one that may write there, by `hf auth login` or HF_TOKEN", kept)
    try:
        made = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=f"Export {folder.name}")
    except Exception as error:  # the hub's client hands on what its HTTP library raises, which differs by its version
        said = str(error).strip().splitlines() or [type(error).__name__]
        wanted = "the hub to take it: a network, and a token that may write there"
        raise UserError(where, said[0].rstrip(".:;"), wanted, kept) from error
    return str(made)

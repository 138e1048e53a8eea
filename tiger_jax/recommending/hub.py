"""A bundle by its address: a folder, or one published on the Hugging Face hub."""

import os
import re
from pathlib import Path

from tiger_jax.errors import InputError
from tiger_jax.workdir.reading import path_of

# One slash: what `Path` makes of two.
_ADDRESS = re.compile(r"hf://?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_ADDED_BY_THE_HUB = [".gitattributes"]


def bundle_at(text: str) -> Path:
    """What a flag calls a bundle: a path as the user gave it, or an address."""
    return Path(text) if text.startswith("hf://") else path_of(text)


def fetch_bundle(source: str | os.PathLike[str]) -> Path:
    """The bundle's folder, downloaded before if it is ``hf://owner/name[@revision]``.

    What was downloaded is kept in the hub's cache, and that is used offline. The hub's
    own variables count: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE.

    Raises:
        InputError: It is no such address, or can't be fetched.
    """
    address = os.fspath(source)
    if not re.match(r"\w\w+:/", address):
        return Path(address)
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(
            f"{address!r} is no address of a bundle: give a folder, or "
            "hf://owner/name, with @revision if wanted"
        )
    try:
        from huggingface_hub import errors, snapshot_download
    except ModuleNotFoundError as error:
        raise InputError(
            f"{address} needs the package huggingface_hub: pip install 'tiger_jax[hub]'"
        ) from error
    name, revision = found.groups()
    try:
        folder = snapshot_download(
            name, revision=revision, ignore_patterns=_ADDED_BY_THE_HUB
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(
            f"{address} can't be fetched ({why}): look at the name and the revision; "
            "for a private one set HF_TOKEN"
        ) from error
    return Path(folder)

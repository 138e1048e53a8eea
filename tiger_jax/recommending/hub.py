"""A bundle by its address: a folder, in a store, or on the Hugging Face hub."""

import os
import re
from pathlib import Path

from tiger_jax.errors import InputError
from tiger_jax.workdir import remote
from tiger_jax.workdir.reading import path_of
from tiger_jax.workdir.store import is_url

# One slash: what `Path` makes of two.
_ADDRESS = re.compile(r"hf://?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_ADDED_BY_THE_HUB = [".gitattributes"]


def bundle_at(text: str, *, to_change: bool = False) -> Path:
    """What a flag calls a bundle: a path as the user gave it, or an address."""
    if to_change and is_url(text) and not text.startswith("hf:"):
        raise InputError(
            f"a change to the copy of {text} would not reach it: name its work "
            f"directory, --workdir={text.rstrip('/').rpartition('/')[0]}"
        )
    return Path(text) if is_url(text) else path_of(text)


def fetch_bundle(source: str | os.PathLike[str]) -> Path:
    """The bundle's folder, downloaded before if it is ``hf://owner/name[@revision]``.

    What was downloaded is kept in the hub's cache, and that is used offline. The hub's
    own variables count: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE. From a store
    (``gs://bucket/run/bundle``) its catalogue's versions come with it.

    Raises:
        InputError: It is no such address, or can't be fetched.
    """
    address = os.fspath(source)
    if not re.match(r"\w\w+:/", address):
        return Path(address)
    if not re.match("(hf|https?):", address):
        scheme, _, rest = address.partition(":")
        return remote.fetch_bundle(f"{scheme}://{rest.lstrip('/')}")
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

"""What the hub's refusals mean for the one who asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from common.errors import ConfigError

TOKEN = "HF_TOKEN"
_PAGES = {"model": "https://huggingface.co/", "dataset": "https://huggingface.co/datasets/"}


def refusal(error: BaseException, name: str, kind: Literal["model", "dataset"], revision: str | None = None):
    """A ConfigError (one line, with the remedy) for what asking again cannot mend: a gated, private or missing
    repository, or a missing revision; None for every other error."""
    from huggingface_hub import errors

    page = _PAGES[kind] + name
    for found in _chain(error):
        text = str(found)
        if isinstance(found, errors.GatedRepoError) or "is a gated dataset" in text:
            return ConfigError(
                f"{name}: this {kind} is gated; accept its licence on {page} and set {TOKEN} to a token of that account"
            )
        if isinstance(found, errors.RevisionNotFoundError):
            return ConfigError(f"{name}: has no revision {revision}; take a commit from {page}/commits/main")
        if isinstance(found, errors.RepositoryNotFoundError):
            return ConfigError(
                f"{name}: no such {kind} on the hub, or a private one; check the name, or set {TOKEN} to a token that "
                f"may read {page}"
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__

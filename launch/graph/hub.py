"""From a name on the Hugging Face hub to the commit that it stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from common.errors import ConfigError

TIMEOUT = 5.0  # seconds that the hub has to answer a plan
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = ("1", "true", "yes", "on")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_offline(env: Mapping[str, str]) -> bool:
    """Whether the user asked, in the process's or the recipe's environment, that nothing is fetched from the hub."""
    asked = (env.get(name, os.environ.get(name, "")) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.lower() in _TRUE for value in asked)


@lru_cache(maxsize=256)
def commit_of(name: str, revision: str | None, offline: bool, field: str) -> str | None:
    """The commit of a model's revision: as the hub says, else the one in the local cache, else None.

    Raises ConfigError (one line) where the hub knows no such model or revision.
    """
    if is_commit(revision):
        return revision
    if not offline:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            return HfApi().model_info(name, revision=revision, timeout=TIMEOUT).sha
        except RevisionNotFoundError:
            raise ConfigError(f"{field}={name}: the hub has no revision {revision} of it; set its revision") from None
        except RepositoryNotFoundError:
            raise ConfigError(
                f"{field}={name}: the hub has no such model, or it is private; check the name and HF_TOKEN"
            ) from None
        except HFValidationError:
            return None
        except Exception:  # no network, a proxy, the hub in trouble: the client raises whatever its transport does
            return _cached(name, revision)
    return _cached(name, revision)


def _cached(name: str, revision: str | None) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    found = list((folder / "snapshots").glob(f"{revision}*")) if re.fullmatch(r"[0-9a-f]{7,39}", revision or "") else []
    return found[0].name if len(found) == 1 else None

"""`export`: a checkpoint of a branch as a directory that transformers and vLLM load, with a model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from common.errors import ConfigError
from common.files import write_text
from launch.branches import PRUNED, describe, named
from launch.card import Licence, card
from launch.graph.plan import Branch, Plan
from launch.graph.select import select
from launch.store import Store


def export(
    plan: Plan,
    name: str | None,
    model: str | None,
    target: Path,
    *,
    licence: Licence,
    push: str | None,
    private: bool = False,
) -> int:
    """Copies the model `model` (None: the last one) of the branch `name` to `target` with README.md; returns 0.

    push: a repository of the hub that gets the directory, made if it is not there, and then `private` or not. Raises
    ConfigError for an unknown branch or model, for one that is not made, for a target that is there, and where the hub
    refuses.
    """
    token = None if push is None else _token(push)
    store = Store(plan.root)
    plan = select(plan, store).plan
    branch = _branch(plan, name)
    models = {one["name"]: one for one in describe(plan, store, branch)["models"]}
    chosen = model or list(models)[-1]
    if chosen not in models:
        raise ConfigError(f"--model {chosen}: branch {branch.name} has none; allowed: {', '.join(models)}")
    found = models[chosen]
    role = next(one.role for one in branch.models if one.name == chosen)
    if role is None:
        raise ConfigError(f"--model {chosen}: is {found['directory']}, which this recipe does not make; export another")
    if found["directory"] in (None, PRUNED):
        raise ConfigError(f"--model {chosen}: {found['directory'] or 'not made yet'}; run the recipe first")
    if target.exists():
        raise ConfigError(f"--to {target}: is there already; name another directory")
    stage = plan.stages[branch.stages[role]]
    source = Path(found["directory"])
    store.verify(store.directory(stage), stage.fingerprint, source.relative_to(store.directory(stage)).as_posix())
    shutil.copytree(source, target)
    write_text(target / "README.md", card(plan, store, branch, found, stage, licence))
    print(f"exported {chosen} of {branch.name}: {target}")
    if push is not None and token is not None:
        _push(target, push, token, private, f"{chosen} of {plan.recipe} {branch.name}")
        print(f"pushed: {push}")
    return 0


def _branch(plan: Plan, name: str | None) -> Branch:
    found = named(plan, [] if name is None else [name])
    if len(found) > 1:
        raise ConfigError(f"--branch is missing: there are {', '.join(branch.name for branch in found)}; name one")
    return found[0]


def _token(push: str) -> str:
    """The token of the environment; one that a file of this machine keeps is not taken. Raises ConfigError."""
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        raise ConfigError(f"--push {push}: HF_TOKEN is not set; set it to a token that may write there")
    return token


def _push(directory: Path, repository: str, token: str, private: bool, message: str) -> None:
    from httpx import HTTPError
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        hub.create_repo(repository, exist_ok=True, private=private or None)
        hub.upload_folder(repo_id=repository, folder_path=directory, commit_message=message)
    except (HTTPError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:300].replace(token, "***")
        raise ConfigError(
            f"--push {repository}: {type(error).__name__}: {text}; {directory} is complete, and `hf upload "
            f"{repository} {directory}` sends it"
        ) from None

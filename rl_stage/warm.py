"""verl's processes of this process: made for one RL run and, with `rl.warm`, kept for the next one that fits them.

Kept are the processes, what they have imported, vLLM's engine and the queue. Each run's weights, optimizer, agent
loops, data loaders and replay buffer are made anew (`rl_stage.renewable`), and the queue is emptied: a run begins as it
would in fresh processes. Only vLLM's own random numbers go on.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.models import tensor_headers
from common.worker_forks.start import fork_server
from rl_stage.demands import demand
from rl_stage.preloaded import PRELOADED
from rl_stage.renewal import can_be_renewed
from rl_stage.session import verl_session

# Keys of verl that may differ between runs of one session: the model's weights, seeds, data, and where a run writes.
VARYING = (
    "actor_rollout_ref.actor.data_loader_seed",
    "actor_rollout_ref.actor.fsdp_config.seed",
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.rollout.seed",
    "data.seed",
    "data.train_files",
    "data.val_files",
    "trainer.default_local_dir",
    "trainer.val_before_train",
)


class Session:
    """Processes for one run after another. parts: what verl's trainer made of them, by attribute; None before a run
    has. agent_loops: handles of the workers."""

    def __init__(self) -> None:
        self.parts: dict[str, Any] | None = None
        self.agent_loops: list[Any] = []
        self.warm = False
        self._key = ""
        self._stack = contextlib.ExitStack()
        self._prepared = False

    def prepare(self, settings: Any) -> None:
        """Start what takes long and depends on no model, unless it runs."""
        if not self._prepared and settings.platform.name == "cpu" and not os.environ.get("RAY_ADDRESS"):
            self._stack.enter_context(fork_server(PRELOADED))
        self._prepared = True

    def open(self, settings: Any, config: Any, model: Path) -> None:
        """Ray and an empty queue for a run with verl's `config` on `model`; kept ones where they fit, else new ones."""
        import ray
        from omegaconf import OmegaConf
        from ray.exceptions import RayError

        # Ray ends with this process too; what is registered later is called earlier, while its actors are there.
        atexit.unregister(close_kept)
        atexit.register(close_kept)
        wanted = key_of(settings, config, model)
        self.warm = bool(wanted)
        if wanted and self._key == wanted:
            try:
                ray.get([worker.settle.remote() for worker in self.agent_loops])
                return
            except RayError as error:
                print(f"a worker of the session is gone, this run begins cold: {error}", flush=True)
        if self._key:
            self.close()
            self.prepare(settings)
        cores = demand(lambda key: OmegaConf.select(config, key))
        self._stack.enter_context(verl_session(settings, cores))
        self._key = wanted or "cold"

    def at_end(self, function: Any) -> None:
        """Call `function` before the processes are ended."""
        self._stack.callback(function)

    def close(self) -> None:
        """End everything."""
        self.parts, self.agent_loops, self._key, self._prepared = None, [], "", False
        self._stack.close()


_kept: Session | None = None


@contextlib.contextmanager
def kept_session() -> Iterator[Session]:
    """The session that the run before left, or a new one. It is left for the next run where it can be renewed, ended by
    an exception and with this process."""
    global _kept
    session, _kept = _kept or Session(), None
    try:
        yield session
    except BaseException:
        session.close()
        raise
    if session.warm and session.parts is not None:
        _kept = session
    else:
        session.close()


def close_kept() -> None:
    """End the session that was left, if there is one."""
    global _kept
    session, _kept = _kept, None
    if session is not None:
        session.close()


def key_of(settings: Any, config: Any, model: Path) -> str:
    """What two runs must have in common to share a session: verl's configuration but for `VARYING`, the environment,
    and of the model all but the values of its weights. Empty for runs whose processes cannot be renewed: of several
    nodes, asynchronous, with further models, or that pause."""
    from omegaconf import OmegaConf

    given = {name: getattr(settings.rl, name) for name in ("warm", "mode", "pause_at", "processes", "verl")}
    platform = settings.platform
    renewed = can_be_renewed(**given, devices=platform.gpus_per_node, platform=platform.name)
    if os.environ.get("RAY_ADDRESS") or not renewed:
        return ""
    plain: Any = OmegaConf.to_container(config)  # interpolations as they are: many lead to a path of `VARYING`
    for key in VARYING:
        *parents, leaf = key.split(".")
        section = plain
        for name in parents:
            section = section[name]
        section.pop(leaf, None)
    files = {
        path.name: hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(model.iterdir())
        if path.is_file() and path.suffix not in (".safetensors", ".md") and not path.name.endswith(".index.json")
    }
    tensors = {name: [header.dtype, list(header.shape)] for name, header in tensor_headers(model).items()}
    seed = settings.seed if settings.rl.full_determinism else None  # in the environment of the processes
    # as the session sets them, which the settings of the run after it have already read
    variables = {name: os.environ.get(name) for name in settings.platform.env}
    found = [plain, files, tensors, variables, settings.platform.threads, seed]
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def _content(path: Path) -> bytes:
    """What a file of a model says: how to sample is written by others in other words once the model was trained."""
    if path.name != "generation_config.json":
        return path.read_bytes()
    found = json.loads(path.read_bytes())
    found |= {"transformers_version": "", "_from_model_config": bool(found.get("_from_model_config"))}
    eos = found.get("eos_token_id")
    return json.dumps(found | {"eos_token_id": eos if isinstance(eos, list) else [eos]}, sort_keys=True).encode()

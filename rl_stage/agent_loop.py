"""verl's single-turn agent loop with our prompts, which also scores its response in the process that generated it.

verl would tokenise prompts in a way of its own, by the model's type. The one renderer makes them here, so that they are
the prompts of the training rows, token for token.

verl would send every response to reward workers of their own. Scoring here with verl's own reward manager gives the
same numbers without those processes (each costs seconds of imports and 0.7 GB) and without a Ray call a response. Our
reward functions only hand a string to the grading pool, so the event loop never waits for them.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.reward import load_reward_manager

from common.chats import Renderer

NAME = "scored_single_turn"


@register(NAME)
class ScoredSingleTurnAgentLoop(SingleTurnAgentLoop):
    """One response to one prompt, with its reward. A row's `tools` (JSON text) are shown in its prompt."""

    _tools: Any = None

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        if self.rollout_config.full_determinism:
            # verl gives every request the same seed and id, so that all responses of a group would be equal.
            seed = request_seed(
                self.rollout_config.seed, kwargs["global_steps"], kwargs["index"], kwargs.get("session_id", 0)
            )
            sampling_params = {**sampling_params, "seed": seed}
            kwargs["priority"] = seed
        self._tools = kwargs.get("tools")
        output = await super().run(sampling_params, **kwargs)  # type: ignore[reportAbstractUsage]
        result = await self._score(output, kwargs)
        output.reward_score = float(result["reward_score"])
        output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
        return output

    async def ct_build_initial_tokens(
        self,
        messages: list[dict],
        tools: Any = None,
        images: Any = None,
        videos: Any = None,
        audios: Any = None,
        mm_inputs_out: Any = None,
    ) -> list[int]:
        """The ids that the engine is given; verl has refused images before, `check_prompts` what is too long."""
        _, ids = await asyncio.to_thread(_renderer(self).prompt, messages, tools or self._tools)
        return ids

    async def _score(self, output: AgentLoopOutput, row: dict[str, Any]) -> dict[str, Any]:
        responses = torch.tensor([output.response_ids], dtype=torch.int64)
        length = len(output.prompt_ids) + len(output.response_ids)
        # The manager writes into extra_info, which all responses to the prompt share.
        fields = {name: row.get(name) for name in ("data_source", "reward_model", "raw_prompt")}
        fields |= {"extra_info": dict(row.get("extra_info") or {}), "__num_turns__": output.num_turns}
        data = DataProto(
            batch=TensorDict(
                {"responses": responses, "attention_mask": torch.ones(1, length, dtype=torch.int64)}, batch_size=1
            ),
            non_tensor_batch={name: _boxed(value) for name, value in fields.items()},
        )
        return await _manager(self).run_single(data)


def _boxed(value: Any) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


_renderers: dict[int, Renderer] = {}
_managers: dict[int, Any] = {}


def forget() -> None:
    """Drop what is kept of a run: the next one's objects may have the same ids."""
    _renderers.clear()
    _managers.clear()


def _renderer(loop: ScoredSingleTurnAgentLoop) -> Renderer:
    """The renderer of this process; a loop object lives for one response only."""
    key = id(loop.tokenizer)
    if key not in _renderers:
        arguments: Any = loop.apply_chat_template_kwargs
        if OmegaConf.is_config(arguments):
            arguments = OmegaConf.to_container(arguments, resolve=True)
        tokenizer: Any = loop.tokenizer  # verl annotates the factory
        _renderers[key] = Renderer(tokenizer, template_arguments=arguments)
    return _renderers[key]


def _manager(loop: ScoredSingleTurnAgentLoop) -> Any:
    """verl's reward manager of this process."""
    key = id(loop.config)
    if key not in _managers:
        _managers[key] = load_reward_manager(loop.config, loop.tokenizer)
    return _managers[key]


@lru_cache(maxsize=4096)
def request_seed(seed: int, step: int, row: int, session: int) -> int:
    """A 31-bit seed of one request, the same in every run: of the run's seed, the step, the prompt and its number."""
    text = f"{seed}/{step}/{row}/{session}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

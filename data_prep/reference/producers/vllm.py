"""vLLM's prompt log-probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.distributions import WINDOW
from common.errors import ConfigError
from common.models import vocabulary_size
from data_prep.reference.producers.contract import Heartbeat
from data_prep.reference.statistics import statistics_of_top


class VllmProducer:
    """vLLM's prompt log-probabilities, for models that vLLM serves better than a plain forward pass.

    They cover the most probable ids and the label, so label_mass, logsumexp and entropy are not among the fields.

    Raises:
        ConfigError: some ids must be left out (`allowed`), which log-probabilities of the whole vocabulary cannot do.
    """

    chats_per_call = 64

    def __init__(self, directory: Path, settings: Any, allowed: np.ndarray | None):
        if allowed is not None:
            raise ConfigError(
                "cache.producer=vllm: the teacher knows ids that the student lacks and vLLM cannot leave them out; "
                "set cache.producer=forward"
            )
        self.vocab_size = vocabulary_size(directory)
        self.width = min(max(settings.cache.top_k, WINDOW), self.vocab_size)
        if settings.platform.name == "cpu":
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            from verl_cpu.patches import alias_vllm_metadata

            alias_vllm_metadata()
        from vllm import LLM

        self.engine = LLM(
            str(directory),
            dtype=settings.cache.dtype,
            max_model_len=settings.data.max_length + 1,  # vLLM always writes one token
            max_logprobs=self.width,
            max_num_batched_tokens=max(settings.cache.tokens_per_batch, settings.data.max_length + 1),
            gpu_memory_utilization=settings.cache.gpu_memory,
            tensor_parallel_size=settings.cache.tensor_parallel,
            trust_remote_code=settings.model.trust_remote_code,
            enable_prefix_caching=False,
            enforce_eager=settings.platform.name == "cpu",  # compiling costs more than it saves there
            seed=0,
        )

    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Heartbeat
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=self.width, flat_logprobs=True, detokenize=False
        )
        for start in range(0, len(chats), self.chats_per_call):
            batch = list(range(start, min(start + self.chats_per_call, len(chats))))
            prompts = [TokensPrompt(prompt_token_ids=chats[index].tolist()) for index in batch]
            ids, logprobs = [], []
            for index, answer in zip(batch, self.engine.generate(prompts, sampling, use_tqdm=False), strict=True):
                found: Any = answer.prompt_logprobs
                shape = (len(chats[index]) - 1, 1 + self.width)  # the label, then the most probable ids
                ids.append(torch.tensor(found.token_ids).view(shape)[positions[index] - 1])
                logprobs.append(torch.tensor(found.logprobs).view(shape)[positions[index] - 1])
            yield batch, statistics_of_top(torch.cat(ids), torch.cat(logprobs), top_k)
            heartbeat(sum(len(positions[index]) for index in batch))

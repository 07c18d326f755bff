"""One vLLM engine, whose weights are exchanged between checkpoints of one architecture."""

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import text_digest
from evaluation.generation.contract import (
    GENERATE_AT_ONCE,
    HEARTBEAT_SECONDS,
    Completion,
    EngineOptions,
    Request,
    Sample,
)

# The files that vLLM reads besides the weights. Equal files: another checkpoint is only a reload away.
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


class VllmEngine:
    """A vLLM engine that draws shards of requests.

    On the CPU platform it runs in this process, with the prefix cache off and one shard at a time: the composition of
    every batch is fixed, and with it every response, whatever ran before. On a GPU shards overlap, and responses repeat
    exactly only with vLLM's batch invariance (VLLM_BATCH_INVARIANT=1); `reproducible` says so.
    """

    def __init__(self, model: Path, options: EngineOptions):
        on_cpu = options.platform == "cpu"
        if on_cpu:
            # An engine process would receive requests while it already computes, in batches that depend on timing.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            from verl_cpu.patches import alias_vllm_metadata

            alias_vllm_metadata()
        import vllm

        from verl_cpu.vllm_reload import tensor_shapes

        self.model = Path(model).resolve()
        self.options = options
        self.count = 1
        self.usable = True
        self.files = model_files_digest(self.model)
        # Read now: the directory may be a stage's scratch space, and the engine outlives the stage.
        self._shapes = tensor_shapes(self.model)
        self.reproducible = on_cpu or os.environ.get("VLLM_BATCH_INVARIANT") == "1"
        # What is kept of a killed run counts only under the same description.
        self.description = {
            "vllm": vllm.__version__,
            **asdict(options),
            "model": str(self.model),
            "reproducible": self.reproducible,
        }
        platform_options: dict[str, Any] = (
            {
                "enforce_eager": True,
                "enable_prefix_caching": False,
                # A request with a seed cannot be cut in two on a CPU: its generator would have to be set back.
                "enable_chunked_prefill": False,
                "max_num_seqs": 128,
            }
            if on_cpu
            else {
                "gpu_memory_utilization": options.gpu_memory,
                "tensor_parallel_size": options.tensor_parallel,
                "enforce_eager": options.eager,
            }
        )
        self.llm = vllm.LLM(
            str(self.model),
            dtype=options.dtype,  # type: ignore[arg-type]
            max_model_len=options.max_length,
            trust_remote_code=options.trust_remote_code,
            seed=0,
            worker_extension_cls="verl_cpu.vllm_reload.ReloadWorkerExtension",
            **platform_options,
        )
        # Off the CPU the next shard enters while the last responses of this one are written: the engine stays full.
        self._refill = 0 if on_cpu else self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def load(self, model: Path) -> None:
        """See `contract.Engine.load`."""
        model = Path(model).resolve()
        if model_files_digest(model) != self.files:
            raise ConfigError(f"{model}: its {', '.join(MODEL_FILES)} differ from those of {self.model}")
        self.llm.collective_rpc("reload_weights_from_directory", args=(str(model), self._shapes))
        self.llm.reset_prefix_cache()
        self.model = model
        self.description["model"] = str(model)

    def run(
        self, shards: Sequence[tuple[int, Sequence[Request]]], heartbeat: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, list[Sample]]]:
        """See `contract.Backend.run`; shards come as they complete."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        waiting = list(reversed(shards))
        open_shards: dict[int, list[Sample | None]] = {}
        missing: dict[int, int] = {}
        seeds: dict[str, int] = {}
        beat = time.monotonic()
        try:
            while waiting or open_shards:
                while waiting and engine.get_num_unfinished_requests() <= self._refill:
                    number, requests = waiting.pop()
                    open_shards[number], missing[number] = [None] * len(requests), len(requests)
                    for place, request in enumerate(requests):
                        name = f"{number}-{place}"
                        seeds[name] = request.seed
                        parameters = SamplingParams(
                            temperature=request.sampling.temperature,
                            top_p=request.sampling.top_p,
                            max_tokens=request.sampling.max_tokens,
                            stop=list(request.sampling.stop),
                            seed=None if request.sampling.temperature == 0 else request.seed,
                            output_kind=RequestOutputKind.FINAL_ONLY,
                        )
                        engine.add_request(name, TokensPrompt(prompt_token_ids=list(request.prompt)), parameters)
                for output in engine.step():
                    if not output.finished:
                        continue
                    number, place = map(int, output.request_id.split("-")[:2])
                    answer = output.outputs[0]  # type: ignore[union-attr]
                    open_shards[number][place] = Sample(
                        answer.text, str(answer.finish_reason), len(answer.token_ids), seeds.pop(f"{number}-{place}")
                    )
                    missing[number] -= 1
                    if not missing[number]:
                        yield number, open_shards.pop(number)  # type: ignore[misc]  # none is missing
                if time.monotonic() - beat >= HEARTBEAT_SECONDS:
                    heartbeat()
                    beat = time.monotonic()
        finally:
            engine.abort_request(list(seeds))

    def score(
        self, rows: Sequence[tuple[Sequence[int], int]], heartbeat: Callable[[], None] = lambda: None
    ) -> list[tuple[float, bool]]:
        """See `contract.Engine.score`."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
        found = []
        for (ids, start), output in zip(
            rows, self._outputs([(ids, parameters) for ids, _ in rows], heartbeat), strict=True
        ):
            entries = [output.prompt_logprobs[place][ids[place]] for place in range(start, len(ids))]
            found.append((float(sum(entry.logprob for entry in entries)), all(entry.rank == 1 for entry in entries)))
        return found

    def complete(self, completions: Sequence[Completion], heartbeat: Callable[[], None] = lambda: None) -> list[str]:
        """See `contract.Engine.complete`."""
        from vllm import SamplingParams

        requests = []
        for completion in completions:
            parameters = SamplingParams(
                temperature=completion.temperature,
                top_p=completion.top_p,
                max_tokens=completion.max_tokens,
                stop=list(completion.stop),
                seed=None if completion.temperature == 0 else completion.seed,
            )
            requests.append((completion.prompt, parameters))
        return [output.outputs[0].text for output in self._outputs(requests, heartbeat)]

    def _outputs(self, requests: Sequence[tuple[Sequence[int], Any]], heartbeat: Callable[[], None]) -> list[Any]:
        from vllm import TokensPrompt

        outputs: list[Any] = []
        for start in range(0, len(requests), GENERATE_AT_ONCE):
            part = requests[start : start + GENERATE_AT_ONCE]
            outputs += self.llm.generate(
                [TokensPrompt(prompt_token_ids=list(ids)) for ids, _ in part],
                [parameters for _, parameters in part],
                use_tqdm=False,
            )
            heartbeat()
        return outputs

    def close(self) -> None:
        """Free the engine's memory and processes."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def model_files_digest(model: Path) -> str:
    """Hash of the non-weight files that decide what an engine computes. Raises ConfigError without a config.json."""
    if not (model / "config.json").is_file():
        raise ConfigError(f"{model}: not a Hugging Face model directory, config.json is missing")
    contents = []
    for name in MODEL_FILES:
        path = model / name
        content: Any = json.loads(path.read_text()) if path.is_file() else None
        if name == "config.json":
            # Where a checkpoint was saved from, and by what, changes nothing.
            content = {k: v for k, v in content.items() if k not in ("_name_or_path", "transformers_version")}
        contents.append([name, content])
    return text_digest(json.dumps(contents, sort_keys=True))

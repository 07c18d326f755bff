"""Scored answers of a model to RL prompts: what the difficulty filter and the readiness for RL are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_stage.rewards import Scored, row_grader, score_many

SHARD = 256  # requests between two saved shards


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn; chat_template and template_arguments: None and {} for a model's own; replicas: engines
    that share the work, which changes no answer."""

    samples: int
    temperature: float
    seed: int
    chat_template: str | None
    template_arguments: Mapping[str, Any]
    replicas: int = 1


@dataclass(frozen=True)
class Answer:
    """One response, its tokens, whether it was cut at the length limit, and its score."""

    text: str
    tokens: int
    cut: bool
    scored: Scored


def answers(
    settings: Any,
    model: Path,
    rows: Sequence[Mapping[str, Any]],
    drawing: Drawing,
    scratch: Path,
    report: Callable[..., None],
) -> list[list[Answer] | None]:
    """`drawing.samples` scored answers to each row's prompt; None for a prompt over `rl.max_prompt_length`.

    settings: sections `rl`, `model` and `platform` of a recipe. rows: of rl_train.parquet. Finished shards are kept in
    `scratch` and found again.
    """
    from evaluation.generation import EngineOptions, Prompter, Sampling, engine_for, sample

    rl = settings.rl
    template = drawing.chat_template
    prompter = Prompter(
        model,
        template and Path(template).expanduser(),
        settings.model.trust_remote_code,
        dict(drawing.template_arguments),
    )
    prompts = [prompter.prompt(row["prompt"], **_tools(row)).ids for row in rows]
    fits = [number for number, ids in enumerate(prompts) if len(ids) <= rl.max_prompt_length]
    options = EngineOptions(
        platform=settings.platform.name,
        dtype=settings.model.dtype,
        max_length=rl.max_prompt_length + rl.max_response_length,
        gpu_memory=rl.gpu_memory,
        tensor_parallel=rl.tensor_parallel,
        trust_remote_code=settings.model.trust_remote_code,
        eager=rl.eager,
    )
    total = len(fits) * drawing.samples
    drawn = sample(
        engine_for(model, options, drawing.replicas),
        [prompts[number] for number in fits],
        Sampling(
            num_samples=drawing.samples,
            temperature=drawing.temperature,
            top_p=rl.top_p,
            max_tokens=rl.max_response_length,
        ),
        seed=drawing.seed,
        directory=scratch / "samples",
        batch_size=SHARD,
        progress=lambda done, _: report(done, 2 * total),
    )
    pairs = [
        (response.text, str(rows[number]["reward_model"]["ground_truth"]))
        for number, samples in zip(fits, drawn, strict=True)
        for response in samples
    ]
    own = [row_grader(rows[number].get("extra_info")) for number in fits for _ in range(drawing.samples)]
    scored = iter(score_many(rl.reward, pairs, lambda done: report(total + done, 2 * total), own))
    found: list[list[Answer] | None] = [None] * len(rows)
    for number, samples in zip(fits, drawn, strict=True):
        found[number] = [Answer(one.text, one.tokens, one.finish_reason == "length", next(scored)) for one in samples]
    return found


def _tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """The functions that a row's prompt shows, for `Prompter.prompt`."""
    return {} if row.get("tools") is None else {"tools": row["tools"]}

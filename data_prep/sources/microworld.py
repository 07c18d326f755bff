"""The embedded world (docs/micro_world.md): every part is drawn from its sizes and the seed.

Held-out problems are drawn first and avoided by every other part. RL owns the first RESERVE problems of its stream
however many prompts are asked for, so that the demonstrations, which avoid them, do not depend on that number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.errors import ConfigError
from data_prep.micro_world import world
from data_prep.micro_world.world import BENCHMARKS, SKILLS, TARGET, Problem
from data_prep.sources.contract import Row, Source

RESERVE = 1024  # problems of the target domain that only RL may ask
TOKENS, RESPONSE_TOKENS = 32, 16  # of a chat, about
TOKENS_PER_TERM = 8  # of the response, and 2 of the question
LONGEST = 10  # additional terms that a chat of the tokenizer's 256 tokens holds in every style


def _size(default: int, description: str) -> Any:
    return Field(default, description=description, gt=0)


class Microworld(BaseModel):
    """Sizes of the embedded world (docs/micro_world.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrain_examples: int = _size(48_000, "worked problems in the pretraining text")
    sft_examples: int = _size(1024, "demonstrations")
    sft_val_examples: int = _size(128, "held-out demonstrations")
    rl_prompts: int = _size(1024, "prompts for reinforcement learning")
    rl_val_prompts: int = _size(64, "held-out prompts for reinforcement learning")
    target_problems: int = _size(256, "held-out problems of the target domain")
    skill_problems: int = _size(128, "held-out problems of each general skill")
    longer: int = Field(
        0,
        description="terms or characters of every problem beyond the usual: sums of 3 to 5, words of 3 to 10",
        ge=0,
        le=LONGEST,
    )
    demonstrations: dict[str, float] = Field(
        {}, description="how often the demonstrations are in each style, e.g. {forward: 3, reference: 1}; {}: running"
    )
    defects: float = Field(
        1.0,
        description="times the usual share of faulty demonstrations (7 %)",
        ge=0,
        le=1 / sum(world.DEFECTS.values()),
    )

    @field_validator("demonstrations")
    @classmethod
    def _styles_are_known(cls, value: dict[str, float]) -> dict[str, float]:
        wrong = [name for name, share in value.items() if name not in world.DEMONSTRABLE or not 0 < share < math.inf]
        if wrong:
            raise ValueError(f"{wrong[0]}: allowed: {', '.join(world.DEMONSTRABLE)}, each with a number above 0")
        return value


class _World:
    """The parts of one world, each drawn alone; what it must avoid is drawn again without its wording."""

    def __init__(self, sizes: Microworld, seed: int) -> None:
        self.sizes, self.seed = sizes, seed

    def benchmark(self, name: str) -> Iterator[Row]:
        skill = BENCHMARKS[name]
        size = self.sizes.target_problems if skill == TARGET else self.sizes.skill_problems
        problems = self._problems(skill, "benchmark", set())
        for index, problem, rng in self._worded(islice(problems, size), skill, "benchmark"):
            row = {"id": f"{name}-{index}", "prompt": world.question(problem, rng), "answer": problem.answer}
            yield self._row(f"benchmark {name}", index, row | {"grader": SKILLS[skill].grader})

    def prompts(self, split: str) -> Iterator[Row]:
        problems = self._validation_prompts() if split == "val" else self._training_prompts()
        for index, problem, rng in self._worded(problems, TARGET, f"rl_{split}"):
            row = {"prompt": world.question(problem, rng), "answer": problem.answer}
            yield self._row(f"rl_{split}", index, row | {"id": f"rl-{split}-{index}"})

    def chats(self, split: str) -> Iterator[Row]:
        problems = self._validation_chats() if split == "val" else self._training_chats()
        for index, problem, rng in self._worded(problems, TARGET, f"sft_{split}"):
            asked = world.question(problem, rng)
            styles = self.sizes.demonstrations or world.DEMONSTRATED
            text, defect = world.demonstration(problem, rng, styles, self.sizes.defects)
            row = {"id": f"sft-{split}-{index}", "messages": _chat(asked, text), "defect": defect}
            yield self._row(f"sft_{split}", index, row | {"critical_spans": world.critical_spans(text)})

    def text(self, skill: str) -> Iterator[Row]:
        # The base may have met a training problem, as real ones have, but never a held-out one.
        taken = self._held_out() if skill == TARGET else self._taken(skill, "benchmark", self.sizes.skill_problems)
        size = text_sizes(self.sizes)[skill]
        problems = islice(self._problems(skill, "pretrain", taken, unique=False), size)
        for index, problem, rng in self._worded(problems, skill, "pretrain"):
            asked = world.question(problem, rng)
            text, style = world.solution(problem, rng)
            yield self._row(f"pretrain {skill}", index, {"messages": _chat(asked, text), "style": style})

    # what is drawn before what

    def _problems(self, skill: str, part: str, taken: set[tuple[str, str]], unique: bool = True) -> Iterator[Problem]:
        return world.draw_problems(skill, f"{part} {self.seed}", taken, unique, self.sizes.longer)

    def _taken(self, skill: str, part: str, count: int) -> set[tuple[str, str]]:
        taken: set[tuple[str, str]] = set()
        for _ in islice(self._problems(skill, part, taken), count):
            pass
        return taken

    def _validation_prompts(self, taken: set[tuple[str, str]] | None = None) -> Iterator[Problem]:
        taken = set() if taken is None else taken
        taken |= self._taken(TARGET, "benchmark", self.sizes.target_problems)
        yield from islice(self._problems(TARGET, "rl_val", taken), self.sizes.rl_val_prompts)

    def _validation_chats(self, taken: set[tuple[str, str]] | None = None) -> Iterator[Problem]:
        taken = set() if taken is None else taken
        _exhaust(self._validation_prompts(taken))
        yield from islice(self._problems(TARGET, "sft_val", taken), self.sizes.sft_val_examples)

    def _held_out(self) -> set[tuple[str, str]]:
        taken: set[tuple[str, str]] = set()
        _exhaust(self._validation_chats(taken))
        return taken

    def _training_prompts(self) -> Iterator[Problem]:
        taken = self._held_out()
        stream = self._problems(TARGET, "rl_train", taken)
        yield from islice(stream, min(self.sizes.rl_prompts, RESERVE))
        if self.sizes.rl_prompts > RESERVE:
            _exhaust(self._demonstrated(taken))
            yield from islice(stream, self.sizes.rl_prompts - RESERVE)

    def _training_chats(self) -> Iterator[Problem]:
        taken = self._held_out()
        _exhaust(islice(self._problems(TARGET, "rl_train", taken), RESERVE))
        yield from self._demonstrated(taken)

    def _demonstrated(self, taken: set[tuple[str, str]]) -> Iterator[Problem]:
        return islice(self._problems(TARGET, "sft_train", taken), self.sizes.sft_examples)

    def _worded(self, problems: Iterator[Problem], skill: str, part: str) -> Iterator[tuple[int, Problem, Random]]:
        rng = Random(f"wording {skill} {part} {self.seed}")
        for index, problem in enumerate(problems):
            yield index, problem, rng

    @staticmethod
    def _row(part: str, index: int, value: dict[str, Any]) -> Row:
        return Row(f"micro-world {part} row {index + 1}", value, index + 1)


def _exhaust(problems: Iterator[Problem]) -> None:
    for _ in problems:
        pass


def _chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text_sizes(sizes: Microworld) -> dict[str, int]:
    """Documents of pretraining text by skill."""
    general = len(SKILLS) - 1
    each = round(sizes.pretrain_examples * (1 - world.TARGET_SHARE) / general)
    return {skill: sizes.pretrain_examples - each * general if skill == TARGET else each for skill in SKILLS}


class MicroworldSource(Source):
    name = "microworld"
    section = Microworld

    def inputs(self, section: Microworld, part: str) -> dict[str, str]:
        self._sizes(section, part)
        return {}

    def parts(self, section: Microworld, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        drawn = _World(section, seed)
        return {
            "sft_train": drawn.chats("train"),
            "sft_val": drawn.chats("val"),
            "rl_train": drawn.prompts("train"),
            "rl_val": drawn.prompts("val"),
            **{f"benchmark/{name}": drawn.benchmark(name) for name in BENCHMARKS},
            **{f"pretrain/{skill}": drawn.text(skill) for skill in SKILLS},
        }

    def benchmarks(self, section: Microworld) -> list[str]:
        return list(BENCHMARKS)

    def identity(self, section: Microworld, part: str) -> dict[str, Any]:
        usual = {name: field.default for name, field in Microworld.model_fields.items()}
        changed = ("longer", "demonstrations", "defects") if part == "sft" else ("longer",)
        named = [name for name in changed if getattr(section, name) != usual[name]]
        return {name: getattr(section, name) for name in (*self._sizes(section, part), *named)}

    @staticmethod
    def _sizes(section: Microworld, part: str) -> tuple[str, ...]:
        """Names of the settings that a part is drawn from."""
        held_out = ("target_problems", "rl_val_prompts", "sft_val_examples")
        if part == "sft":
            return ("sft_examples", *held_out)
        if part == "rl":
            return ("rl_prompts", *held_out, *(("sft_examples",) if section.rl_prompts > RESERVE else ()))
        if part == "pretrain":
            return ("pretrain_examples", *held_out, "skill_problems")
        name = part.removeprefix("benchmark/")
        if name not in BENCHMARKS:
            raise ConfigError(f"data source microworld has no benchmark {name}; allowed: {', '.join(BENCHMARKS)}")
        return ("target_problems",) if BENCHMARKS[name] == TARGET else ("skill_problems",)

    def extent(self, section: Microworld, inputs: Mapping[str, Path], name: str) -> int:
        part, _, below = name.partition("/")
        if part == "pretrain":
            return text_sizes(section)[below]
        if part == "benchmark":
            return section.target_problems if BENCHMARKS[below] == TARGET else section.skill_problems
        sizes = {"sft_train": section.sft_examples, "sft_val": section.sft_val_examples}
        return (sizes | {"rl_train": section.rl_prompts, "rl_val": section.rl_val_prompts})[name]

    def rough_rows(self, section: Microworld, part: str) -> float | None:
        if part == "pretrain":
            return float(section.pretrain_examples)
        return float(self.extent(section, {}, f"{part}_train" if part in ("sft", "rl") else part))

    def rough_tokens(self, section: Microworld, max_length: int | None = None) -> tuple[float, float, float] | None:
        chats, response = section.sft_examples, RESPONSE_TOKENS + TOKENS_PER_TERM * section.longer
        question = TOKENS - RESPONSE_TOKENS + 2 * section.longer
        return float(chats), float(chats * (question + response)), float(chats * response)


SOURCE = MicroworldSource()

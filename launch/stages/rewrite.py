"""Stage `rewrite`: a data-level method answers the questions of the demonstrations anew, by vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError
from common.files import read_json
from data_prep import methods
from data_prep.methods.contract import section_of
from launch.recipe.data import Data
from launch.recipe.platform import Placement
from launch.recipe.section import Section, identity, runtime, setting
from launch.stages._code import own_code, own_graders
from launch.stages.contract import Branch, Cost, Counts, Made, Outside, Settings, StageKind, Step, Tokens
from launch.stages.memory import WIDTH, Memory, Shape, sampling
from launch.stages.references import model_of, numerics
from launch.stages.sizes import spread

FILLED = 0.5  # of max_tokens that a response fills when nothing is known
RESPONSE_BYTES = 2.5  # of a sampled token in a Parquet file


class Rewrite(Section):
    method: str | None = setting(
        None, "who chooses what is trained on: rft, star, grape, self_distillation, rejection, one's own; null: off"
    )
    settings: dict[str, Any] = setting({}, "the method's own settings (docs/data.md)")
    model: str | None = setting(None, "who answers; null: the base model")
    revision: str | None = setting(None, "of a hub name")
    samples: int = setting(4, "responses to each question; 0 where the method chooses among demonstrations", ge=0)
    temperature: float = setting(1.0, "sampling temperature", ge=0)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(1024, "response tokens", gt=0)
    stop: list[str] = setting([], "texts that end a response and are left out of it")
    max_length: int = setting(4096, "prompt and response tokens", gt=0)
    grader: str = setting("math", "judges responses against the answers that the demonstrations state")
    unanswered: Literal["drop", "demonstration"] | None = setting(
        None, "chats of a question that nothing is chosen for; null: as the method does"
    )
    seed: int = setting(0, "sampling")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "weights in vLLM")
    batch_size: int = setting(512, "requests in one saved shard; sums of a batch depend on its size", gt=0)
    eager: bool = setting(False, "vLLM without CUDA graphs and compilation: starts in seconds, samples slower")
    tensor_parallel: int = setting(1, "devices of one vLLM engine; sums depend on it", gt=0)
    replicas: int = runtime(1, "vLLM engines, each on its own devices; on the CPU platform one core each", gt=0)
    gpu_memory: float = runtime(0.85, "share of a device's memory for vLLM", gt=0, le=1)


class RewriteSettings(Settings):
    rewrite: Rewrite = setting(Rewrite(), "the recipe's rewrite section")
    data: Data = setting(Data(), "the recipe's data section")  # type: ignore[valid-type]


class RewriteStage(StageKind):
    name = "rewrite"
    function = "data_prep.rewriting.stage:run"
    section = Rewrite
    describes = "data-level methods: other answers to the demonstrations' questions"
    after = ("prepare", "pretrain")
    tables = ("rewrite.json",)

    def check(self, recipe: Any) -> None:
        given = recipe.rewrite
        if given.method is None:
            return
        method = methods.load(given.method)
        section_of(method, given.settings)
        if not given.samples and not method.scored:
            raise ValueError(f"rewrite.samples=0: rewrite.method={given.method} needs responses; set 1 or more")
        if given.temperature == 0 and given.samples > 1:
            raise ValueError(f"rewrite.samples={given.samples}: greedy responses are all equal; set rewrite.samples=1")
        if given.max_tokens >= given.max_length:
            raise ValueError(
                f"rewrite.max_tokens={given.max_tokens} leaves no room for a prompt in "
                f"rewrite.max_length={given.max_length}; raise that"
            )
        if recipe.platform.name == "cpu" and given.tensor_parallel > 1:
            raise ValueError(
                f"rewrite.tensor_parallel={given.tensor_parallel}: an engine of the CPU platform is one process; set "
                "rewrite.replicas instead"
            )
        if method.verdict != "none":
            _check_grader(given.grader)

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        given = recipe.rewrite
        if given.method is None or not recipe.sft.enabled or recipe.sft.adopt is not None:
            return
        columns = branch.objective.needs.columns
        if columns:
            raise ConfigError(
                f"rewrite.method={given.method}: objective {recipe.objective['name']} reads {', '.join(columns)} of "
                "the demonstrations, which sampled answers have not; choose another objective, or rewrite.method=null"
            )
        method = methods.load(given.method)
        inputs: dict[str, Made | Outside] = {"model": model_of(recipe, "base"), "data": Made("prepare:sft")}
        if given.model is not None:
            field = "rewrite.model"
            revision = "rewrite.revision"
            inputs["base"] = inputs["model"]
            inputs["model"] = Outside(given.model, field, given.revision, model=True, revision_field=revision)
        own = section_of(method, given.settings).model_dump(mode="json")
        yield Step(
            "rewrite",
            method.name,
            RewriteSettings(rewrite=given, data=recipe.data, model=recipe.model, platform=recipe.platform),
            {
                "rewrite": {**identity(given), "settings": own},
                "method": {"name": method.name, "version": method.version, **own_code(given.method)},
                "graders": own_graders([given.grader]) if method.verdict != "none" else {},
                **numerics(recipe),
            },
            inputs,
        )

    def placement(self, recipe: Any) -> Placement:
        return spread(recipe.rewrite.replicas * recipe.rewrite.tensor_parallel, recipe.platform)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        given, chats = counts.settings["rewrite"], counts.tokens()
        sampled = chats.chats * given["samples"] * given["max_tokens"] * FILLED
        operations = 2 * counts.parameters() * sampled
        method = methods.load(given["method"])
        if method.scored:
            scorer = counts.parameters("base" if counts.has("base") else "model")
            operations += 2 * scorer * (sampled + chats.tokens)
        return Cost(operations, RESPONSE_BYTES * sampled, start_seconds=60.0, sampling=True)

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory:
        given = settings["rewrite"]
        largest = max(shape.parameters for shape in shapes.values())
        weights = WIDTH[given["dtype"]] * largest / given["tensor_parallel"]
        return sampling(weights, given["gpu_memory"], settings["platform"])

    def smaller(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        given, platform = settings["rewrite"]["tensor_parallel"], settings["platform"]
        while platform["name"] == "gpu" and 2 * given <= platform["gpus_per_node"]:
            given *= 2
            yield "rewrite.tensor_parallel", given

    def contents(self, settings: Mapping[str, Any], inputs: Mapping[str, str], directory: Path | None) -> Any:
        found = None if directory is None else (read_json(directory / "summary.json") or {}).get("tokens")
        if found is None:
            return None
        counts = found["sft_train"]
        return Tokens(counts["rows"], counts["tokens"], counts["response_tokens"], True)


def _check_grader(name: str) -> None:
    """Refuses an unknown grader, and one that reads more than an answer. Raises ValueError."""
    from evaluation import graders

    found, _ = graders.parse(name)
    if found.runs_code:
        raise ValueError(
            f"rewrite.grader={name}: it runs a program against tests, which demonstrations do not hold; choose "
            "another, or rewrite.method=grape"
        )


REWRITE = RewriteStage()

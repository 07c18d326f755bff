"""Stage `generate`: what a model answers to a benchmark or a harness task, or says of held-out chats, by vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import model_validator

from common.errors import ConfigError
from common.templates import template_file
from launch.recipe.platform import Placement
from launch.recipe.section import Section, identity, runtime, setting
from launch.stages.contract import Branch, Cost, Counts, Made, Measures, Outside, Settings, StageKind, Step
from launch.stages.memory import GB, REST, WIDTH, Memory, Shape, forward_pass, logits_of_rows, sampling
from launch.stages.prepare import benchmark_name
from launch.stages.references import model_of, numerics, sources
from launch.stages.sizes import engines

FILLED = 0.5  # of max_tokens that a response fills when nothing is known
RESPONSE_BYTES = 2.5  # of a sampled token in a Parquet file
TOKEN_BYTES = 160.0  # of a held-out token with its most probable ids
TASK_PROBLEMS, TASK_TOKENS = 1000.0, 256.0  # of a harness task, when nothing is known
HELD_OUT = "held_out"
HELD_OUT_ROWS = 1024  # positions whose logits exist at a time (evaluation.held_out.POSITIONS_PER_CHUNK)
# Device memory beside the weights: activations, CUDA graphs, and a cache that holds some requests at once; chunks of
# logits of the forward passes.
ENGINE_REST, PASSES_REST = 4 * GB, 4 * GB


class Shot(Section):
    prompt: str = setting("1+1=", "a problem as it is asked")
    answer: str = setting("2", "its answer in full")


class Benchmark(Section):
    name: str = setting("target", "a benchmark of data.source, of data.files.benchmarks, or one's own by dotted path")
    source: str | None = setting(
        None, "who gives its problems: a source, or `published`; null: the source that has it, else published"
    )
    num_samples: int = setting(16, "samples a problem", gt=0)
    temperature: float = setting(1.0, "sampling temperature", ge=0)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(2048, "response tokens", gt=0)
    greedy: bool = setting(True, "one greedy response as well")
    prompting: Literal["chat", "plain"] = setting("chat", "the chat template, or bare text for base models")
    plain: str = setting("{prompt}\n\n{answer}", "bare text of a problem with its answer; a prompt ends before that")
    shots: list[Shot] = setting([], "solved problems that come first: turns of a chat, or bare text as in `plain`")
    stop: list[str] = setting([], "texts that end a response and are left out of it; base models do not stop")
    prefill: str = setting("", "how the answer begins; graders read it as part of the answer")
    balanced: bool = setting(False, "balanced accuracy as well: the mean over the answers' classes")


class Task(Section):
    """A task of lm-evaluation-harness with its own prompts, metrics and defaults."""

    name: str = setting("mmlu", "task or group, by the harness' name")
    num_fewshot: int | None = setting(None, "examples in the prompt; null: the task's own", ge=0)
    limit: int | None = setting(None, "problems of each task; null: all", gt=0)
    chat: bool = setting(False, "apply the chat template")


class Eval(Section):
    enabled: bool = setting(True, "evaluate the base and every checkpoint")
    benchmarks: list[Benchmark] = setting([], "what to run")
    tasks: list[Task] = setting([], "what to run through lm-evaluation-harness")
    task_files: str | None = setting(None, "directory of one's own task files and of local data for harness tasks")
    base_minimum: float | None = setting(None, "average only where the base model reaches this (TALR: 0.5)", ge=0, le=1)
    k: list[int] = setting([1, 2, 4, 8, 16, 32, 64], "pass@k; a benchmark leaves out those above its num_samples")
    target: str = setting("target", "the benchmark of the SFT domain; the others count as general ability")
    seed: int = setting(0, "sampling")
    resamples: int = setting(2000, "bootstrap resamples", gt=0)
    dtype: Literal["float32", "bfloat16"] = setting("float32", "weights in vLLM")
    max_length: int = setting(4096, "prompt and response tokens", gt=0)
    held_out_chats: int = setting(256, "held-out chats for token entropy and KL from the base; 0: none", ge=0)
    batch_size: int = setting(512, "requests in one saved shard; sums of a batch depend on its size", gt=0)
    run_generated_code: bool = setting(False, "allow the grader `code` to run what the model wrote, in the sandbox")
    eager: bool = setting(False, "vLLM without CUDA graphs and compilation: starts in seconds, samples slower")
    replicas: int = runtime(1, "vLLM engines, each on its own devices; on the CPU platform one core each", gt=0)
    tensor_parallel: int = setting(1, "devices of one vLLM engine; sums depend on it", gt=0)
    gpu_memory: float = runtime(0.6, "share of a device's memory for vLLM; forward passes run without it", gt=0, le=1)

    @model_validator(mode="after")
    def _responses_fit(self) -> Eval:
        for benchmark in self.benchmarks:
            if benchmark.max_tokens >= self.max_length:
                raise ValueError(
                    f"max_tokens={benchmark.max_tokens} of {benchmark.name!r} leaves no room for a prompt in "
                    f"eval.max_length={self.max_length}; raise that"
                )
        return self


class MeasuredSettings(Settings):
    """What is measured: exactly one of the last three."""

    eval: Eval = setting(Eval(), "the recipe's eval section")
    benchmark: Benchmark | None = setting(None, "an entry of eval.benchmarks, or")
    task: Task | None = setting(None, "an entry of eval.tasks, or")
    held_out: bool = setting(False, "held-out chats")


class Generate(StageKind):
    name = "generate"
    version = 3
    function = "evaluation.generate:run"
    section = Eval
    describes = "evaluation"
    after = ("prepare", "pretrain", "sft", "adopt", "average", "rl")
    shares_engine = True

    @property
    def key(self) -> str:
        return "eval"

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if not recipe.eval.enabled:
            return
        things = measured(recipe)
        for model in (model for model in branch.models if model.measured):
            for thing in things:
                inputs: dict[str, Any] = {"model": model.source}
                if thing.benchmark is not None:
                    inputs["problems"] = Made(f"prepare:benchmark/{thing.name}")
                if thing.held_out:
                    inputs |= _held_out_inputs(recipe, model.name)
                extra: dict[str, Any] = {}
                if thing.task is not None:
                    extra = {"eos": recipe.model.eos}
                    if recipe.model.chat_template is not None:
                        template = str(template_file(recipe.model.chat_template))
                        inputs["chat_template"] = Outside(template, "model.chat_template", local=True)
                    if recipe.eval.task_files is not None:
                        inputs["task_files"] = Outside(recipe.eval.task_files, "eval.task_files", local=True)
                yield self._step(recipe, thing, model.name, model.label, inputs, extra)
        for thing in (thing for thing in things if thing.held_out):
            for name, label, source in _looked_at(branch):
                made = {"model": source, **_held_out_inputs(recipe, name)}
                yield self._step(recipe, thing, name, label, made, {})

    def _step(
        self, recipe: Any, thing: Measured, model: str, label: str, inputs: dict[str, Any], extra: dict[str, Any]
    ) -> Step:
        return Step(
            f"generate:{model}/{thing.name}",
            f"{label}.{thing.name}",
            thing.settings(MeasuredSettings, recipe),
            {**thing.generated(recipe), **extra, **numerics(recipe)},
            inputs,
            asks=Measures(model, thing.name, thing.kind),
        )

    def check(self, recipe: Any) -> None:
        if recipe.platform.name == "cpu" and recipe.eval.tensor_parallel > 1:
            raise ValueError(
                f"eval.tensor_parallel={recipe.eval.tensor_parallel}: an engine of the CPU platform is one process; "
                f"set eval.replicas instead"
            )

    def placement(self, recipe: Any) -> Placement:
        return engines(recipe.eval.replicas * recipe.eval.tensor_parallel, recipe.platform)

    def engine(self, settings: Mapping[str, Any]) -> Any:
        common = {name: value for name, value in settings.items() if name not in ("benchmark", "task", "held_out")}
        # Forward passes and vLLM would fight over a device: theirs is a process without an engine.
        return {**common, "passes": settings["held_out"] and settings["platform"]["name"] != "cpu"}

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory:
        evaluation, platform, shape = settings["eval"], settings["platform"], shapes["model"]
        width, name = WIDTH[evaluation["dtype"]], platform["name"]
        longest = evaluation["max_length"]
        weights = width * shape.parameters
        if settings["held_out"]:
            both = [shape, *([shapes["base"]] if "base" in shapes else [])]
            parts = {
                "weights": sum(width * one.parameters for one in both),
                "activations": forward_pass(shape, longest, width) + width * longest * shape.hidden,
                # log p, its exponential and their product; with a base log q and the difference too
                "logits": (1 + 2 * len(both)) * logits_of_rows(shape, min(longest, HELD_OUT_ROWS)),
            }
            return Memory({**parts, "rest": REST[name]}, "forward passes")
        return sampling(weights / evaluation["tensor_parallel"], evaluation["gpu_memory"], platform)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        settings, size = counts.settings, counts.parameters()
        check_memory(settings, size, counts.parameters("base") if counts.has("base") else 0.0)
        evaluation, benchmark = settings["eval"], settings["benchmark"]
        if benchmark is not None:
            length = min(benchmark["max_tokens"], evaluation["max_length"]) * FILLED
            sampled = counts.rows("problems") * (benchmark["num_samples"] + benchmark["greedy"]) * length
        elif settings["held_out"]:
            sampled = evaluation["held_out_chats"] * settings["eval"]["max_length"] * FILLED
            return Cost(2 * size * sampled, 20_000 + TOKEN_BYTES * sampled, start_seconds=40.0)
        else:
            sampled = (settings["task"]["limit"] or TASK_PROBLEMS) * TASK_TOKENS
        return Cost(2 * size * sampled, 20_000 + RESPONSE_BYTES * sampled, start_seconds=40.0, sampling=True)


def _held_out_inputs(recipe: Any, model: str) -> dict[str, Any]:
    """What forward passes over held-out chats read beside the model called `model`."""
    base = {} if model in ("base", "teacher") else {"base": model_of(recipe, "base")}
    return {"data": Made("prepare:sft"), **base}


def _looked_at(branch: Branch) -> Iterable[tuple[str, str, Any]]:
    """Models whose held-out chats an analysis of the recipe looks at, though nothing else is measured of them: name,
    label and source of each."""
    from evaluation import analyses

    recipe = branch.recipe
    names = [entry if isinstance(entry, str) else str(entry.get("name", "")) for entry in recipe.analyses]
    also = {one for name in names for one in analyses.load(name).also}
    measured_too = {model.name for model in branch.models if model.measured}
    if "checkpoints" in also and recipe.sft.enabled:
        for step in sorted(set(recipe.sft.publish_steps)):
            if f"sft@{step}" not in measured_too:
                yield f"sft@{step}", f"{recipe.objective['name']}-{step}", Made("sft", f"checkpoint:{step}")
    if "teacher" in also and recipe.sft.enabled and "teacher" in sources(branch):
        yield "teacher", "teacher", model_of(recipe, "teacher")


def check_memory(settings: Mapping[str, Any], size: float, base: float) -> None:
    """Raises ConfigError where a GPU cannot hold the weights of a stage's models.

    settings: of the stage, as JSON values. size, base: parameters of the model and, for held-out chats, of its base.
    """
    evaluation, platform = settings["eval"], settings["platform"]
    if platform["name"] == "cpu":
        return
    wide = 4 if evaluation["dtype"] == "float32" else 2
    device = platform["device_memory"] * GB
    smaller = "" if wide == 2 else "eval.dtype=bfloat16, "
    if settings["held_out"]:
        needed = wide * (size + base) + PASSES_REST
        if needed > device:
            raise ConfigError(
                f"eval.held_out_chats={evaluation['held_out_chats']}: the model and its base take "
                f"{needed / GB:.0f} GB on one device, platform.device_memory={platform['device_memory']:g}; set "
                f"{smaller}eval.held_out_chats=0, or name a larger device"
            )
        return
    needed, share = wide * size / evaluation["tensor_parallel"] + ENGINE_REST, evaluation["gpu_memory"] * device
    if needed > share:
        raise ConfigError(
            f"eval.gpu_memory={evaluation['gpu_memory']:g}: vLLM needs {needed / GB:.0f} GB of each device for this "
            f"model and may take {share / GB:.0f} of platform.device_memory={platform['device_memory']:g}; set "
            f"{smaller}eval.tensor_parallel={2 * evaluation['tensor_parallel']}, or a larger eval.gpu_memory"
        )


class Measured:
    """One thing that is measured of every model: a benchmark, a harness task, or the held-out chats."""

    def __init__(self, *, benchmark: Benchmark | None = None, task: Task | None = None, held_out: bool = False) -> None:
        self.benchmark, self.task, self.held_out = benchmark, task, held_out
        self.path = "" if benchmark is None else benchmark.name
        self.kind = self.name = HELD_OUT
        if benchmark is not None:
            self.kind, self.name = "benchmark", benchmark_name(benchmark.name)
            self.benchmark = benchmark.model_copy(update={"name": self.name})
        elif task is not None:
            self.kind, self.name = "task", task.name

    def settings(self, kind: type[Settings], recipe: Any) -> Settings:
        """What the stages `generate` and `measure` receive."""
        return kind.model_validate(
            {
                "eval": recipe.eval,
                "benchmark": self.benchmark,
                "task": self.task,
                "held_out": self.held_out,
                "model": recipe.model,
                "platform": recipe.platform,
            }
        )

    def _sampling(self, names: Iterable[str]) -> dict[str, Any]:
        assert self.benchmark is not None
        values = identity(self.benchmark)
        return {name: values[name] for name in names}

    def generated(self, recipe: Any) -> dict[str, Any]:
        """The settings on which the answers depend."""
        evaluation = recipe.eval
        common = {name: getattr(evaluation, name) for name in ("dtype", "max_length")}
        if not self.held_out:
            common["tensor_parallel"] = evaluation.tensor_parallel
        if self.held_out:
            from evaluation.held_out import STATISTICS, TABLE_VERSION

            common |= {"tokens": TABLE_VERSION, "statistics": STATISTICS}
            return {"held_out": evaluation.held_out_chats, **common}
        common |= {"seed": evaluation.seed, "batch_size": evaluation.batch_size}
        if self.task is not None:
            return {"task": identity(self.task), "run_generated_code": evaluation.run_generated_code, **common}
        sampling = ("num_samples", "temperature", "top_p", "max_tokens", "greedy", "prompting")
        sampling = (*sampling, "plain", "shots", "stop", "prefill")
        return {"benchmark": {"name": self.name, **self._sampling(sampling)}, **common}

    def scored(self, recipe: Any) -> dict[str, Any]:
        """The settings on which the scores of given answers depend."""
        evaluation = recipe.eval
        common = {name: getattr(evaluation, name) for name in ("seed", "resamples", "base_minimum")}
        if self.benchmark is None:
            return {"name": self.name, **common}
        return {
            "name": self.name,
            "k": evaluation.k,
            "balanced": self.benchmark.balanced,
            "run_generated_code": evaluation.run_generated_code,
            **common,
        }


def measured(recipe: Any) -> list[Measured]:
    """What is measured of every model: held-out chats, benchmarks, tasks. Raises ConfigError for wrong ones."""
    from evaluation.checks import check

    evaluation = recipe.eval
    if evaluation.benchmarks or evaluation.tasks or not evaluation.held_out_chats:
        check(evaluation)
    found = [Measured(held_out=True)] if evaluation.held_out_chats else []
    found += [Measured(benchmark=entry) for entry in evaluation.benchmarks]
    found += [Measured(task=entry) for entry in evaluation.tasks]
    _check_names(recipe, [thing.name for thing in found if not thing.held_out])
    return found


def _check_names(recipe: Any, names: list[str]) -> None:
    """Refuses a target that is not measured, and a benchmark whose file is given but that nothing evaluates."""
    if names and recipe.eval.target not in names:
        raise ConfigError(f"eval.target={recipe.eval.target}: is not evaluated; allowed: {', '.join(names)}")
    unused = [name for name in recipe.data.files.benchmarks if name not in names]
    if unused:
        raise ConfigError(
            f"data.files.benchmarks.{unused[0]}: given but not evaluated; add {{name: {unused[0]}}} to "
            "eval.benchmarks, or leave the file out"
        )


GENERATE = Generate()

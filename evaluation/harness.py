"""Tasks of lm-evaluation-harness on our engine: its prompts, metrics and filters, our intervals."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common.chats import Renderer
from common.errors import ConfigError
from common.files import text_digest
from evaluation.generation.contract import Completion, Engine
from evaluation.generation.kept import KeptEngine
from evaluation.generation.sampling import sample_seed
from evaluation.harness_code import check_runner, code_prompts, loading, running
from evaluation.measure import MOST_UNGRADED
from evaluation.sandbox import check_sandbox


@dataclass(frozen=True)
class LoadedTasks:
    """Harness tasks whose data is there; `manager` is the harness' own, `programs` names those that run code, `prompts`
    are what these give to complete, by their tests."""

    manager: Any
    programs: frozenset[str]
    prompts: Mapping[str, str]


def load_tasks(tasks: Sequence[Any], *, task_files: str | None, run_generated_code: bool = False) -> LoadedTasks:
    """Load the tasks and groups with their data, so that what is missing is known before anything is generated.

    Raises ConfigError for an unknown task, one whose data is out of reach, one that runs code without leave or where
    there is no sandbox, and where lm-evaluation-harness, or a package that a task needs, is not installed.
    """
    try:
        import lm_eval.evaluator  # noqa: F401
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ConfigError(_not_installed(error)) from None

    manager, programs = _manager(TaskManager, task_files, _files(task_files)), set()
    prompts: dict[str, str] = {}
    for task in tasks:
        if task.name not in manager.all_tasks:
            raise ConfigError(
                f"eval.tasks: {task.name!r} is no task of lm-evaluation-harness {_version()} or of {task_files}; "
                f"`lm-eval ls tasks` lists its own"
            )
        try:
            with loading():
                loaded = manager.load([task.name])["tasks"]
        except ModuleNotFoundError as error:
            raise ConfigError(_not_installed(error)) from None
        except (OSError, ConnectionError, ValueError) as error:
            raise ConfigError(_no_data(task.name, error)) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("datasets", "huggingface_hub", "requests", "httpx"):
                raise
            raise ConfigError(_no_data(task.name, error)) from None
        coded = [name for name, one in loaded.items() if getattr(one.config, "unsafe_code", False)]
        if coded and not run_generated_code:
            raise ConfigError(
                f"eval.tasks: {coded[0]!r} runs programs that the model writes; set eval.run_generated_code=true to "
                f"allow it, in the sandbox (docs/sandbox.md)"
            )
        if coded:
            check_sandbox()
            programs.add(task.name)
        for name in coded:
            check_runner(name, loaded[name])
            prompts.update(code_prompts(loaded[name]))
        if any("ifeval" in name for name in loaded):
            _check_sentences(task.name)
    return LoadedTasks(manager, frozenset(programs), prompts)


@lru_cache(maxsize=1)
def _manager(kind: type, task_files: str | None, _: tuple) -> Any:
    # The harness reads its ten thousand task files to make one, which takes many seconds.
    return kind(include_path=task_files)


def _files(directory: str | None) -> tuple[tuple[str, int], ...]:
    found = Path(directory).rglob("*.y*ml") if directory is not None else ()
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in found))


def run_task(
    task: Any,
    loaded: LoadedTasks,
    engine: Engine,
    tokenizer,
    *,
    max_length: int,
    seed: int,
    heartbeat: Callable[[], None],
    directory: Path,
    template_arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run one task or group; returns {"versions": {task: version}, "counts": {"cut", "clamped"} of requests that the
    context did not hold and {"ungraded"} of programs that could not be judged, "rows": one a problem and filter, as in
    `artifact.TASK_ROWS`, in the harness' order}.

    loaded: of `load_tasks`, with this task. What the engine answers is kept in `directory`, where a run that starts
    over finds it. template_arguments: variables of the chat template. Scores that are no mean over problems (a corpus'
    perplexity) are left out. Raises ConfigError for a text longer than `max_length` that is scored as a whole, and
    RuntimeError where more than `MOST_UNGRADED` of the programs could not be judged.
    """
    from lm_eval.evaluator import simple_evaluate

    renderer = Renderer(tokenizer, template_arguments=template_arguments) if task.chat else None
    model = _language_model(KeptEngine(engine, directory), tokenizer, max_length, heartbeat, seed, renderer)
    # The harness loads the tasks again, from the same modules.
    with loading(), running(task.name in loaded.programs, heartbeat, loaded.prompts) as verdicts:
        found: Any = _evaluated(simple_evaluate, model, task, loaded, seed)
    if verdicts["ungraded"] > MOST_UNGRADED * verdicts.total():
        raise RuntimeError(
            f"eval.tasks: {task.name!r}: {verdicts['ungraded']} of {verdicts.total()} programs could not be judged, "
            f"more than {MOST_UNGRADED:.0%}: that is no score; the answers are kept"
        )
    return {
        "versions": {name: str(version) for name, version in sorted(found["versions"].items())},
        "counts": {**model.counts, "ungraded": verdicts["ungraded"]},
        "rows": _rows(found["samples"]),
    }


def _evaluated(simple_evaluate: Callable[..., Any], model: Any, task: Any, loaded: LoadedTasks, seed: int) -> Any:
    return simple_evaluate(
        model=model,
        tasks=[task.name],
        task_manager=loaded.manager,
        num_fewshot=task.num_fewshot,
        limit=task.limit,
        apply_chat_template=task.chat,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        confirm_run_unsafe_code=task.name in loaded.programs,
    )


def _rows(samples: dict[str, list[dict]]) -> list[dict[str, Any]]:
    rows = []
    for task, found in samples.items():
        for row in found:
            pairs = {metric: _sum_and_count(row[metric]) for metric in row["metrics"]}
            rows.append(
                {
                    "task": task,
                    "problem": row["doc_id"],
                    "filter": row["filter"],
                    "asked": text_digest(json.dumps([row["doc"], str(row["target"])], sort_keys=True, default=str)),
                    "requests": json.dumps(row["arguments"], default=str),
                    "responses": json.dumps(row["resps"], default=str),
                    "target": str(row["target"]),
                    "scores": json.dumps({metric: pair for metric, pair in pairs.items() if pair}, sort_keys=True),
                }
            )
    return rows


def _sum_and_count(value: Any) -> tuple[float, float] | None:
    """A problem's share in a mean: one number, or the parts of a problem that count each (IFEval's instructions)."""
    if isinstance(value, bool | int | float | np.number):
        return (float(value), 1.0)
    if isinstance(value, list) and value and all(isinstance(item, bool | int | float) for item in value):
        return (float(sum(value)), float(len(value)))
    return None


def _not_installed(error: ModuleNotFoundError) -> str:
    return f"eval.tasks: {error.name} is not installed; pip install '.[harness]'"


def _check_sentences(name: str) -> None:
    # The harness fetches this when it is imported, goes on without it, and fails when all is generated.
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise ConfigError(
            f"eval.tasks: {name!r} counts sentences with NLTK's punkt_tab, which is not here; on a connected machine "
            f"run `python -m nltk.downloader punkt_tab`, and copy its nltk_data here (NLTK_DATA names the place)"
        ) from None


def _no_data(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return (
        f"eval.tasks: the data of {name!r} is out of reach ({reason}); on a connected machine run `lm-eval validate "
        f"--tasks {name}` and copy its HF_HOME here, or write a task file that reads local files (eval.task_files)"
    )


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _language_model(
    engine: KeptEngine,
    tokenizer,
    max_length: int,
    heartbeat: Callable[[], None],
    seed: int,
    renderer: Renderer | None,
):
    """Our engine as the harness sees a model; renderer: of a task whose problems are chats."""
    from lm_eval.api.model import TemplateLM

    class EngineModel(TemplateLM):
        def __init__(self):
            super().__init__()
            self.tokenizer = tokenizer
            self.counts = Counter(cut=0, clamped=0)

        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

        @property
        def tokenizer_name(self) -> str:
            return str(tokenizer.name_or_path)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            # Chat templates write every special token themselves. Other texts as with the harness' own models: by the
            # tokenizer's default, and not twice.
            begun = renderer is not None or string.startswith(tokenizer.decode(self.prefix_token_id))
            if add_special_tokens is None and begun:
                add_special_tokens = False
            options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return tokenizer(string, **options)["input_ids"]

        def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
            assert renderer is not None
            if add_generation_prompt:
                return renderer.prompt(chat_history)[0]
            # The last message is how the answer begins.
            return renderer.prompt(chat_history[:-1])[0] + chat_history[-1]["content"]

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return tokenizer.chat_template if chat_template else ""

        def _loglikelihood_tokens(self, requests, **_: Any) -> list[tuple[float, bool]]:
            scored = []
            for _text, context, continuation in requests:
                # The engine generates at least one token, and the beginning of a prompt matters least.
                ids = (context + continuation)[-(max_length - 1) :]
                self.counts["cut"] += len(ids) < len(context) + len(continuation)
                scored.append((ids, len(ids) - len(continuation)))
            return engine.score(scored, heartbeat)

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            rows = []
            for request in requests:
                ids = [self.prefix_token_id, *self.tok_encode(request.args[0], add_special_tokens=False)]
                if len(ids) > max_length - 1:
                    raise ConfigError(
                        f"eval.max_length={max_length}: a text of {len(ids)} tokens is scored as a whole; raise it"
                    )
                rows.append((ids, 1))
            return [score for score, _ in engine.score(rows, heartbeat)]

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            completions = []
            drawn: Counter[tuple[int, ...]] = Counter()
            for request in requests:
                text, options = request.args
                until = options.get("until") or []
                limit = int(options.get("max_gen_toks", 256))
                greedy = not options.get("do_sample", False)
                whole = self.tok_encode(text)
                ids = tuple(whole[-max(1, max_length - limit) :])
                self.counts["cut"] += len(ids) < len(whole)
                self.counts["clamped"] += max_length - len(ids) < limit
                completions.append(
                    Completion(
                        ids,
                        max_tokens=min(limit, max_length - len(ids)),
                        temperature=0.0 if greedy else float(options.get("temperature", 1.0)),
                        top_p=1.0 if greedy else float(options.get("top_p", 1.0)),
                        stop=tuple([until] if isinstance(until, str) else until),
                        seed=sample_seed(seed, ids, drawn[ids]),
                    )
                )
                drawn[ids] += 1
            return engine.complete(completions, heartbeat)

    return EngineModel()

import functools
import importlib.metadata
import json
import pathlib
import re
import sys
import tomllib
from types import SimpleNamespace

import pytest

from common.chats import Renderer
from common.errors import ConfigError
from evaluation.compare import HEADLINES
from evaluation.generation import EngineOptions, Prompter, close_engine, engine_for
from evaluation.harness import load_tasks, run_task
from evaluation.metrics import of_task
from evaluation.statistics import Estimate

ROOT = pathlib.Path(__file__).parents[2]

OPTIONS = EngineOptions(platform="cpu", dtype="float32", max_length=64, gpu_memory=0.5)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{more}
metadata: {{version: 1.0}}
"""
CHOICE = """doc_to_choice: ["1", "2", "3"]
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]"""
GENERATE = """doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]"""


@pytest.fixture
def task_files(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}+{i}=", "answer": i % 3}) + "\n" for i in range(9)))
    for name, kind, more in (("pick", "multiple_choice", CHOICE), ("write", "generate_until", GENERATE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows, kind=kind, more=more))
    return tmp_path


@pytest.fixture
def only_local_tasks(monkeypatch):
    """Spare the harness the index of its own ten thousand task files, of which the tests name none."""
    import lm_eval.tasks

    manager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


def run(name, engine, model, task_files, *, num_fewshot=None, max_length=64, **options):
    """What a task generates, with the metrics that are measured of it."""
    task = SimpleNamespace(name=name, num_fewshot=num_fewshot, limit=None, chat=False)
    found = run_task(
        task,
        load_tasks([task], task_files=str(task_files)),
        engine,
        Prompter(model).tokenizer,
        max_length=max_length,
        seed=0,
        heartbeat=lambda: None,
        **{"directory": task_files / "kept", **options},
    )
    metrics = {metric: Estimate(**one) for metric, one in of_task(found["rows"], seed=0, resamples=50).items()}
    problems = len({(row["task"], row["problem"]) for row in found["rows"]})
    return {**found, "metrics": metrics, "problems": problems}


def reference_choices(model, count):
    """Which of the continuations 1, 2, 3 Hugging Face's model finds likeliest after each question."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, network = Prompter(model).tokenizer, AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    choices = []
    for i in range(count):
        ids = torch.tensor([tokenizer(f"{i}+{i}=", add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            scores = network(ids).logits[0, -1].log_softmax(-1)
        choices.append(max(range(3), key=lambda k: float(scores[tokenizer.convert_tokens_to_ids(str(k + 1))])))
    return choices


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_local_task_is_scored_as_by_hugging_face_and_another_is_generated(model_directory, task_files):
    model = model_directory(tied=True, seed=0)
    engine = engine_for(model, OPTIONS)
    found = run("pick", engine, model, task_files)
    expected = [choice == i % 3 for i, choice in enumerate(reference_choices(model, 9))]
    accuracy = found["metrics"]["acc,none"]
    assert [json.loads(row["scores"]) for row in found["rows"]] == [{"acc": [float(right), 1.0]} for right in expected]
    assert all("+" in row["requests"] and row["responses"] for row in found["rows"])
    assert accuracy.value == pytest.approx(sum(expected) / 9) and accuracy.n == found["problems"] == 9
    assert accuracy.low <= accuracy.value <= accuracy.high
    written = run("write", engine, model, task_files)["metrics"]["exact_match,none"]
    assert 0.0 <= written.value <= 1.0 and written.n == 9
    # A run that starts over asks the engine nothing.
    facts = SimpleNamespace(description=engine.description, count=1)
    assert run("pick", facts, model, task_files) == found
    close_engine()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_replicas_score_and_write_as_one_engine_does(model_directory, task_files, monkeypatch):
    for module in ("kept", "replicas"):
        monkeypatch.setattr(f"evaluation.generation.{module}.GENERATE_AT_ONCE", 4)
    model = model_directory(tied=True, seed=0)
    found = []
    for count in (1, 2):
        engine = engine_for(model, OPTIONS, count)
        directory = task_files / str(count)
        found.append([run(name, engine, model, task_files, directory=directory) for name in ("pick", "write")])
        assert len(list(directory.glob("*.json"))) == 7 + 3
    assert found[0] == found[1]
    close_engine()


def load(name, task_files=None):
    return load_tasks([SimpleNamespace(name=name)], task_files=None if task_files is None else str(task_files))


def test_a_missing_harness_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.evaluator", raising=False)
    with pytest.raises(ValueError, match=r"lm_eval.* is not installed; pip install '\.\[harness\]'"):
        load("mmlu")


@pytest.mark.usefixtures("only_local_tasks")
def test_unknown_tasks_missing_data_and_unsafe_tasks_are_refused(task_files):
    with pytest.raises(ValueError, match=r"'no_such_task' is no task of .*; `lm-eval ls tasks`"):
        load("no_such_task", task_files)
    (task_files / "program.yaml").write_text((task_files / "write.yaml").read_text() + "unsafe_code: true\n")
    text = (task_files / "program.yaml").read_text().replace("task: write", "task: program")
    (task_files / "program.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"'program' runs programs .*set eval\.run_generated_code=true"):
        load("program", task_files)
    (task_files / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match="out of reach"):
        load("pick", task_files)


class Scripted:
    """An engine that finds the continuations likely, and gives the responses, of a script: marker in the prompt ->
    text."""

    def __init__(self, tokenizer, script):
        self.tokenizer, self.script = tokenizer, script
        self.count, self.description = 1, {"scripted": True}
        self.prompts = []

    def _of(self, ids):
        self.prompts.append(self.tokenizer.decode(ids))
        (text,) = [text for marker, text in self.script.items() if marker in self.prompts[-1]]
        return text

    def score(self, rows, heartbeat):
        found = []
        for ids, start in rows:
            likely = self.tokenizer.decode(ids[start:]).strip() == self._of(ids[:start])
            found.append((-1.0 if likely else -1000.0, likely))
        return found

    def complete(self, completions, heartbeat):
        return [self._of(completion.prompt) for completion in completions]


class Remembering:
    """An engine that writes nothing and finds nothing likely; `shown`: the ids that it was given, `scored` with the
    place where a continuation begins."""

    def __init__(self):
        self.count, self.description = 1, {"remembering": True}
        self.shown, self.scored = [], []

    def score(self, rows, heartbeat):
        self.scored += rows
        return [(-1.0, False)] * len(rows)

    def complete(self, completions, heartbeat):
        self.shown += [list(completion.prompt) for completion in completions]
        return [""] * len(completions)


@pytest.mark.usefixtures("only_local_tasks")
@pytest.mark.parametrize("prefix", ["", "The answer: "])
def test_chats_are_shown_as_the_renderer_writes_them(tmp_path, model_directory, task_files, prefix):
    """Also where the tokenizer would begin a text with a token that the template does not write."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Prompter(model_directory(tied=True, seed=0)).tokenizer
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last %}|{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% if word %}{{ word }}{% endif %}{% endif %}"
    )
    for name in ("pick", "write"):
        text = (task_files / f"{name}.yaml").read_text()
        (task_files / f"{name}.yaml").write_text(f"{text}gen_prefix: {json.dumps(prefix)}\n" if prefix else text)
    engine = Remembering()
    for name in ("pick", "write"):
        task = SimpleNamespace(name=name, num_fewshot=0, limit=3, chat=True)
        run_task(
            task,
            load_tasks([task], task_files=str(task_files)),
            engine,
            tokenizer,
            max_length=256,
            seed=0,
            heartbeat=lambda: None,
            directory=tmp_path / "kept",
            template_arguments={"word": "so,"},
        )
    renderer = Renderer(tokenizer, template_arguments={"word": "so,"})
    asked = [renderer.prompt([{"role": "user", "content": f"{i}+{i}="}])[0] + prefix.rstrip() for i in range(3)]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    shown = [ids[: len(prompts[0])] for ids in engine.shown]
    assert sorted(shown) == sorted(prompts)
    assert {tuple(ids[: len(prompts[0])]) for ids, _ in engine.scored} == {tuple(ids) for ids in prompts}


# Rows written by us with the columns of each data set's card on the hub, which are those that lm-evaluation-harness
# 0.4.13 reads: task: (its file, {split: rows}, shots, {marker of a problem: what the model says}, {metric: mean}).
QUESTION = {"question": "Shot?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 1}
CHOICES = {"text": ["ice", "iron"], "label": ["A", "B"]}
ENDINGS = ["sings.", "swims.", "sleeps.", "sits."]
ENDING = {"ind": 1, "activity_label": "Swimming", "ctx_a": "He dives.", "ctx_b": "he", "ctx": "He dives. he"}
PUBLISHED = {
    "mmlu": (
        "mmlu/default/mmlu_anatomy.yaml",
        {
            "dev": [QUESTION] * 5,
            "test": [{**QUESTION, "question": "First?"}, {**QUESTION, "question": "Second?", "answer": 3}],
        },
        5,
        {"First?": "B", "Second?": "A"},
        {"acc,none": 0.5},
    ),
    "arc": (
        "arc/arc_challenge.yaml",
        {
            "test": [
                {"id": "a", "question": "Which melts?", "choices": CHOICES, "answerKey": "A"},
                {"id": "b", "question": "Which rusts?", "choices": CHOICES, "answerKey": "B"},
            ]
        },
        None,
        {"Which melts?": "ice", "Which rusts?": "ice"},
        {"acc,none": 0.5, "acc_norm,none": 0.5},
    ),
    "piqa": (
        "piqa/piqa.yaml",
        {"validation": [{"goal": "Cut bread", "sol1": "use a spoon", "sol2": "use a knife", "label": 1}]},
        None,
        {"Cut bread": "use a knife"},
        {"acc,none": 1.0, "acc_norm,none": 1.0},
    ),
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        {
            "validation": [
                {**ENDING, "endings": ENDINGS, "source_id": "s", "split": "val", "split_type": "x", "label": "1"}
            ]
        },
        None,
        {"He dives. He": "swims."},
        {"acc,none": 1.0, "acc_norm,none": 1.0},
    ),
    "gsm8k": (
        "gsm8k/gsm8k.yaml",
        {
            "train": [{"question": f"Shot {i}?", "answer": f"So.\n#### {i}"} for i in range(5)],
            "test": [
                {"question": "Dollars?", "answer": "Half is <<2/2=1>>1.\n#### 1,800"},
                {"question": "Cents?", "answer": "#### 5"},
            ],
        },
        5,
        {"Dollars?": " 900 and 900 are $1,800", "Cents?": " It is 6.\n#### 6"},
        {"exact_match,flexible-extract": 0.5, "exact_match,strict-match": 0.0},
    ),
}


def publish(directory, name, file, splits):
    """A task file that reads our rows and keeps all else of the shipped task."""
    import lm_eval.tasks

    files = {}
    for split, rows in splits.items():
        path = directory / f"{name}_{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    # Some tasks name a training split that is only there for shots.
    first = next(iter(files.values()))
    files = {split: files.get(split, first) for split in ("train", "validation", "test", "dev")}
    settings = {
        "include": str(pathlib.Path(lm_eval.tasks.__file__).parent / file),
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    (directory / f"local_{name}.yaml").write_text(json.dumps(settings))
    return f"local_{name}"


@pytest.mark.usefixtures("only_local_tasks")
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_rows_of_a_published_task_are_asked_answered_and_scored(tmp_path, model_directory, name):
    file, splits, shots, script, expected = PUBLISHED[name]
    model = model_directory(tied=True, seed=0)
    engine = Scripted(Prompter(model).tokenizer, script)
    task = publish(tmp_path, name, file, splits)
    found = run(task, engine, model, tmp_path, num_fewshot=shots, max_length=4096)
    assert {metric: estimate.value for metric, estimate in found["metrics"].items()} == expected
    count = len(script)
    assert all(one.n == found["problems"] == count and one.low <= one.high for one in found["metrics"].values())
    assert set(HEADLINES) & set(found["metrics"])
    assert all(prompt.count("Shot") == (shots or 0) for prompt in engine.prompts)


# https://huggingface.co/datasets/google/IFEval, revision 966cd89545d6b6acfd7638bc708b98261ca58e84. Each of `kwargs`
# holds all arguments, those of other instructions null.
ARGUMENTS = re.findall(
    r"\w+",
    """num_highlights relation num_words num_placeholders prompt_to_repeat num_bullets section_spliter num_sections
    capital_relation capital_frequency keywords num_paragraphs language let_relation letter let_frequency end_phrase
    forbidden_words keyword frequency num_sentences postscript_marker first_word nth_paragraph""",
)


def instructions(key, prompt, **given):
    return {
        "key": key,
        "prompt": prompt,
        "instruction_id_list": list(given["ids"]),
        "kwargs": [dict.fromkeys(ARGUMENTS) | arguments for arguments in given["ids"].values()],
    }


IFEVAL = [
    instructions(
        1000,
        "Write a summary without commas.",
        ids={
            "punctuation:no_comma": {},
            "detectable_format:number_highlighted_sections": {"num_highlights": 1},
            "length_constraints:number_words": {"relation": "at least", "num_words": 5},
        },
    ),
    instructions(
        1001,
        "Answer in Spanish with two sentences.",
        ids={
            "language:response_language": {"language": "es"},
            "length_constraints:number_sentences": {"relation": "at least", "num_sentences": 2},
        },
    ),
    instructions(1002, "Do not shout.", ids={"change_case:english_lowercase": {}}),
]


@pytest.fixture
def sentence_data(tmp_path, monkeypatch):
    """An untrained model of NLTK's sentence splitter, in its published layout: every full stop ends a sentence."""
    import nltk

    directory = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    directory.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (directory / name).touch()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])


@pytest.mark.usefixtures("only_local_tasks")
def test_ifeval_is_scored_by_the_harness_own_functions(tmp_path, model_directory, sentence_data):
    model = model_directory(tied=True, seed=0)
    name = publish(tmp_path, "ifeval", "ifeval/ifeval.yaml", {"train": IFEVAL})
    script = {
        # All three; then neither language nor length; and one that only the loose reading forgives (a first line).
        "without commas": "Here is *the summary* of all that was said",
        "in Spanish": "The weather is nice today",
        "not shout": "SURE:\nthis is a quiet answer that is written in small letters",
    }
    engine = Scripted(Prompter(model).tokenizer, script)
    found = run(name, engine, model, tmp_path, max_length=4096)
    values = {metric: estimate.value for metric, estimate in found["metrics"].items()}
    assert values == {
        "inst_level_loose_acc,none": pytest.approx(4 / 6),
        "inst_level_strict_acc,none": pytest.approx(3 / 6),
        "prompt_level_loose_acc,none": pytest.approx(2 / 3),
        "prompt_level_strict_acc,none": pytest.approx(1 / 3),
    }
    assert all(one.low <= one.value <= one.high and one.n == 3 for one in found["metrics"].values())
    strict = [json.loads(row["scores"])["inst_level_strict_acc"] for row in found["rows"]]
    assert strict == [[3.0, 3.0], [0.0, 2.0], [0.0, 1.0]]
    spoken = Scripted(engine.tokenizer, {**script, "in Spanish": "El tiempo es bueno hoy. Vamos a la playa."})
    again = run(name, spoken, model, tmp_path, max_length=4096, directory=tmp_path / "again")
    assert again["metrics"]["prompt_level_strict_acc,none"].value == pytest.approx(2 / 3)


@pytest.mark.usefixtures("only_local_tasks")
def test_what_ifeval_needs_is_named_before_anything_is_generated(tmp_path, sentence_data, monkeypatch):
    import nltk

    name = publish(tmp_path, "ifeval", "ifeval/ifeval.yaml", {"train": IFEVAL})
    load(name, tmp_path)
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ValueError, match=r"'local_ifeval' counts sentences .* `python -m nltk\.downloader punkt_tab`"):
        load(name, tmp_path)
    for module in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(ValueError, match=r"langdetect is not installed; pip install '\.\[harness\]'"):
        load(name, tmp_path)


def test_the_pinned_cpu_set_holds_all_that_the_harness_extra_asks_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = extras["harness"]
    name, extra, version = re.fullmatch(r"([\w-]+)\[(\w+)\]==([\d.]+)", wanted).groups()
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert pins[name] == version == importlib.metadata.version(name)
    needed = [
        re.match(r"[\w.-]+", line).group()
        for line in importlib.metadata.requires(name)
        if "extra ==" not in line or f'extra == "{extra}"' in line
    ]
    assert {"langdetect", "immutabledict", "nltk"} <= set(needed)
    assert [one for one in needed if one.lower().replace("_", "-") not in pins] == []


def beginning(model, tmp_path):
    """A copy of a model whose tokenizer puts `<|im_start|>` before every text."""
    import shutil

    from tokenizers import Tokenizer, processors

    directory = tmp_path / "with_bos"
    shutil.copytree(model, directory)
    core = Tokenizer.from_file(str(directory / "tokenizer.json"))
    token = "<|im_start|>"
    core.post_processor = processors.TemplateProcessing(
        f"{token} $A", special_tokens=[(token, core.token_to_id(token))]
    )
    core.save(str(directory / "tokenizer.json"))
    configuration = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(configuration | {"bos_token": token}))
    return directory


@pytest.mark.parametrize("bos", [True, False])
def test_texts_become_the_token_ids_that_the_harness_own_model_sees(tmp_path, model_directory, bos):
    from lm_eval.models.huggingface import HFLM

    from evaluation.harness import _language_model

    model = model_directory(tied=True, seed=0)
    tokenizer = Prompter(beginning(model, tmp_path) if bos else model).tokenizer
    ours = _language_model(Scripted(tokenizer, {}), tokenizer, 64, lambda: None, 0, None)
    theirs = SimpleNamespace(
        tokenizer=tokenizer, add_bos_token=None, prefix_token_id=ours.prefix_token_id, backend="causal"
    )
    theirs.tok_encode = functools.partial(HFLM.tok_encode, theirs)
    for text in ("1+1=", "<|im_start|>user", ""):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)
    assert ours._encode_pair("1+1= ", "2") == HFLM._encode_pair(theirs, "1+1= ", "2")
    first = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert (ours.tok_encode("1+1=")[0] == first) is bos
    assert ours.tok_encode("<|im_start|>user").count(first) == 1


@pytest.mark.usefixtures("only_local_tasks")
def test_requests_that_the_context_does_not_hold_are_counted(task_files, model_directory):
    model = model_directory(tied=True, seed=0)
    engine = Scripted(Prompter(model).tokenizer, {"=": "1"})
    found = run("write", engine, model, task_files, max_length=10)
    # Prompts of four characters; eight tokens are asked for, six are left after the cut to two.
    assert found["counts"] == {"cut": 9, "clamped": 0, "ungraded": 0}
    found = run("write", engine, model, task_files, max_length=6, directory=task_files / "small")
    assert found["counts"] == {"cut": 9, "clamped": 9, "ungraded": 0}
    assert run("write", engine, model, task_files, directory=task_files / "large")["counts"] == {
        "cut": 0,
        "clamped": 0,
        "ungraded": 0,
    }


# Rows of our own with the columns of openai/openai_humaneval and google-research-datasets/mbpp.
HUMANEVAL = [
    {
        "task_id": f"Test/{number}",
        "prompt": f'def {name}(x):\n    """{text}"""\n',
        "entry_point": name,
        "canonical_solution": f"    return {right}\n",
        "test": f"def check(candidate):\n    assert candidate(3) == {value}\n",
    }
    for number, (name, text, right, value) in enumerate(
        [("twice", "Double x.", "2 * x", 6), ("square", "Square x.", "x * x", 9), ("cube", "Cube x.", "x**3", 27)]
    )
]
SOLUTIONS = {"Double x.": "    return 2 * x\n", "Square x.": "    return x + x\n", "Cube x.": "    return undefined\n"}
MBPP = [
    {
        "task_id": 11 + number,
        "text": f"Write a function to {text}.",
        "code": "",
        "test_list": [f"assert {name}({value}) == {value + step}" for value in (1, 2, 3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number, (name, text, step) in enumerate([("add_one", "add one", 1), ("add_two", "add two", 2)])
]


@pytest.fixture
def no_hub(monkeypatch):
    """`evaluate.load` of anything from the hub fails, as it does offline; the harness' modules are imported anew."""
    import evaluate

    def refuse(path, *_, **__):
        raise ConnectionError(path)

    monkeypatch.setattr(evaluate, "load", refuse)
    for name in [name for name in sys.modules if name.startswith(("lm_eval.tasks.humaneval", "lm_eval.tasks.mbpp"))]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("only_local_tasks", "no_hub")
@pytest.mark.parametrize(
    ("file", "rows", "script", "metric", "shots"),
    [
        ("humaneval/humaneval.yaml", HUMANEVAL, SOLUTIONS, "pass@1,create_test", 0),
        (
            "mbpp/mbpp.yaml",
            MBPP,
            {"to add one": "def add_one(x):\n    return x + 1\n", "to add two": "def add_two(x):\n    return x\n"},
            "pass_at_1,none",
            3,
        ),
    ],
)
def test_programs_are_asked_for_as_the_harness_asks_and_run_in_the_sandbox(
    tmp_path, model_directory, monkeypatch, file, rows, script, metric, shots
):
    def refuse():
        raise ConfigError("no sandbox here")

    model = model_directory(tied=True, seed=0)
    name = publish(tmp_path, file.split("/")[0], file, {"test": rows})
    task = SimpleNamespace(name=name, num_fewshot=None, limit=None, chat=False)
    with pytest.raises(
        ValueError, match=rf"'{name}' runs programs that the model writes; set eval\.run_generated_code"
    ):
        load_tasks([task], task_files=str(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="no sandbox here"):
        patch.setattr("evaluation.harness.check_sandbox", refuse)
        load_tasks([task], task_files=str(tmp_path), run_generated_code=True)
    loaded = load_tasks([task], task_files=str(tmp_path), run_generated_code=True)
    assert set(loaded.prompts.values()) == ({row["prompt"] for row in rows} if not shots else set())
    engine, beats = Scripted(Prompter(model).tokenizer, script), []
    found = run_task(
        task,
        loaded,
        engine,
        engine.tokenizer,
        max_length=4096,
        seed=0,
        heartbeat=lambda: beats.append(1),
        directory=tmp_path / "kept",
    )
    scores = [json.loads(row["scores"])[metric.split(",")[0]][0] for row in found["rows"]]
    assert scores == [1.0, *[0.0] * (len(rows) - 1)]
    assert of_task(found["rows"], seed=0, resamples=50)[metric]["value"] == pytest.approx(1 / len(rows))
    assert len(beats) >= len(rows) and metric in HEADLINES
    if shots:
        assert all(prompt.count("[DONE]") == shots and prompt.endswith("[BEGIN]\n") for prompt in engine.prompts)
    else:
        assert engine.prompts == [row["prompt"] for row in rows]


@pytest.mark.usefixtures("only_local_tasks", "no_hub")
def test_a_task_that_runs_programs_by_means_of_its_own_is_refused(tmp_path, task_files):
    (task_files / "own.py").write_text("def ran(doc, results):\n    return {'acc': 1.0}\n")
    text = (task_files / "write.yaml").read_text().replace("task: write", "task: program")
    (task_files / "program.yaml").write_text(f"{text}unsafe_code: true\nprocess_results: !function own.ran\n")
    task = SimpleNamespace(name="program")
    with pytest.raises(ValueError, match=r"'program' runs programs .* outside the sandbox"):
        load_tasks([task], task_files=str(task_files), run_generated_code=True)

"""A made-up study with known traits, and every analysis of it: `python -m evaluation.analyses.synthetic DIRECTORY`.

Solutions of small sums, a token for each character. By construction the base is undecided between four ways to begin,
three to go on and two to end, and between ten digits of a reference number; it is unsure of results, which the teacher
knows. The runs sharpen what the base believes (dft), push every label (sft), or leave what is undecided (lp_sft).
No model is trained or asked: the pictures of docs/analyses.md show the analyses, and say nothing of the objectives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CHARACTERS = " ,;.:+-=\\{}\n0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CERTAIN, RESULT, DIGITS, BEGIN, GO_ON, END = "certain", "result", "digits", "begin", "go on", "end"
SETS = {BEGIN: "FRSA", GO_ON: "tns", END: "S\\", DIGITS: "0123456789"}
BEFORE = ("sft@10", "sft@20", "sft")
RUNS = {"sft": BEFORE, "dft": (*BEFORE, "rl"), "lp_sft": (*BEFORE, "rl")}
PROGRESS = {"sft@10": 0.35, "sft@20": 0.7, "sft": 1.0, "rl": 1.25}
# pass@1 of the target, of two other benchmarks, and pass@16 of the target, by model
SCORES = {
    ("base model", "base"): (0.12, 0.71, 0.66, 0.45),
    ("sft", "sft"): (0.41, 0.5, 0.52, 0.66),
    ("dft", "sft"): (0.5, 0.42, 0.5, 0.61),
    ("dft", "rl"): (0.58, 0.4, 0.44, 0.64),
    ("lp_sft", "sft"): (0.46, 0.66, 0.6, 0.78),
    ("lp_sft", "rl"): (0.68, 0.62, 0.58, 0.85),
}


def solution(rng: np.random.Generator) -> list[tuple[str, str]]:
    """The characters of a solution, each with what the base thinks of it."""
    first, second, third = rng.integers(1, 10, 3).tolist()
    found = [("F" if rng.random() < 0.25 else "R", BEGIN)]
    if found[0][0] == "R":
        found += [(one, CERTAIN) for one in "ef "] + [(str(d), DIGITS) for d in rng.integers(0, 10, 3).tolist()]
        found += [(one, CERTAIN) for one in ": "]
    else:
        found += [(one, CERTAIN) for one in "irst "]
    found += [(one, CERTAIN) for one in f"{first}+{second}="] + [(one, RESULT) for one in str(first + second)]
    found += [(",", CERTAIN), (" ", CERTAIN), ("t", GO_ON)] + [(one, CERTAIN) for one in f"hen +{third}="]
    found += [(one, RESULT) for one in str(first + second + third)] + [(".", CERTAIN), (" ", CERTAIN), ("\\", END)]
    found += [(one, CERTAIN) for one in "boxed{"] + [(one, CERTAIN) for one in str(first + second + third)]
    return [*found, ("}", CERTAIN), ("\n", CERTAIN)]


def chats(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Of each chat the ids (n,), the base's logits (n, V) and what it thinks of each token."""
    rng, size = np.random.default_rng(seed), len(CHARACTERS)
    for _ in range(count):
        text = [pair for _ in range(3) for pair in solution(rng)]
        ids = np.array([CHARACTERS.index(one) for one, _ in text])
        z = rng.normal(-9, 1, (len(ids), size))
        for at, (one, kind) in enumerate(text):
            if kind in SETS:
                z[at, [CHARACTERS.index(other) for other in SETS[kind]]] = rng.normal(0, 0.06, len(SETS[kind]))
            elif kind == RESULT:
                z[at, [CHARACTERS.index(digit) for digit in "0123456789"]] = rng.normal(-1, 1.2, 10)
                z[at, CHARACTERS.index(one)] = rng.normal(0.3, 1.5)
            else:
                z[at, CHARACTERS.index(one)] = rng.normal(-3, 2.5)
        yield ids, z, [kind for _, kind in text]


def moved(
    z: np.ndarray, ids: np.ndarray, kinds: list[str], line: str, model: str, rng: np.random.Generator
) -> np.ndarray:
    """The logits of a model that came of the base's."""
    label = np.eye(z.shape[1])[ids]
    if model == "teacher":
        knows = np.array([4.0 if kind == RESULT else 0.0 for kind in kinds])[:, None]
        return z + label * knows + rng.normal(0, 0.3, z.shape)
    far = PROGRESS[model]
    noise = rng.normal(0, 0.25 * far, z.shape)
    shifted = np.exp(z - z.max(-1, keepdims=True))
    p = (shifted / shifted.sum(-1, keepdims=True))[np.arange(len(ids)), ids][:, None]
    if line == "dft":
        return z * (1 + 1.2 * far) + label * 5 * far * (p - 0.25) + noise
    if line == "lp_sft":
        free = np.array([0.3 if kind in SETS else 1.0 for kind in kinds])[:, None]
        return z + label * 1.6 * far * free + noise * 0.3
    return z + label * 2.2 * far + noise


def write_model(directory: Path, line: str, model: str, count: int, seed: int, repeats: int = 1) -> Path:
    """The held-out tokens of a model; `repeats` times the same chats under new numbers."""
    import torch

    from evaluation.token_table import TokenWriter, statistics

    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed + 1)
    columns: list[dict[str, np.ndarray]] = []
    for chat, (ids, z, kinds) in enumerate(chats(count, seed)):
        base = torch.from_numpy(z).log_softmax(-1)
        log_p = base
        if model != "base":
            log_p = torch.from_numpy(moved(z, ids, kinds, line, model, rng)).log_softmax(-1)
        one = {name: found.numpy() for name, found in statistics(log_p.float(), torch.from_numpy(ids)).items()}
        one |= {"chat": np.full(len(ids), chat), "position": 12 + np.arange(len(ids)), "token": ids}
        one["entropy"] = torch.special.entr(log_p.exp()).sum(-1).numpy()
        one["kl"] = (base.exp() * (base - log_p)).sum(-1).numpy()
        columns.append(one)
    whole = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    with TokenWriter(directory, lambda one: CHARACTERS[one]) as tokens:
        for again in range(repeats):
            tokens.add(
                **{**whole, "chat": whole["chat"] + again * count, "kl": None if model == "base" else whole["kl"]}
            )
    return directory


def write_cache(directory: Path, table: Path, shards: int = 1) -> Path:
    """A reference cache with the label probabilities, N1 and N2 of a token table; `shards` times the same."""
    from data_prep.reference import writer
    from data_prep.reference.layout import TOKEN_FIELDS, Layout, shard_name
    from evaluation.token_table import batches

    found = list(batches(table, ("log_p", "n1", "n2")))
    columns = {name: np.concatenate([batch[name] for batch in found]) for name in ("log_p", "n1", "n2")}
    source, output = directory / "made", directory / "cache"
    source.mkdir(parents=True)
    output.mkdir()
    layout, records = Layout("compact", 1, 18, len(CHARACTERS), tuple(TOKEN_FIELDS)), []
    for index in range(shards):
        arrays = layout.allocate(len(columns["n1"]), 1)
        arrays["offsets"][1] = len(columns["n1"])
        arrays["label_logprob"][:], arrays["n1"][:], arrays["n2"][:] = columns.values()
        records.append(writer.write_shard(source, shard_name(index), layout, arrays))
    writer.publish(source, output, layout, {"producer": "forward"}, records, None)
    return output


def write_scores(directory: Path, name: str, value: float, many: float) -> Path:
    """The measured scores of a benchmark."""
    from evaluation.artifact import write_metrics

    def around(centre: float) -> dict[str, float]:
        return {"value": centre, "low": centre - 0.03, "high": centre + 0.03, "n": 200}

    directory.mkdir(parents=True)
    engine = {"vllm": "0", "dtype": "float32", "max_length": 64, "reproducible": True}
    counts = {"problems": 200, "responses": 3200, "grading": {"ok": 3200}}
    metrics = {"pass@1": around(value), "pass@16": around(many)}
    facts = {"engine": engine, "base_minimum": None, "kind": "benchmark", "name": name, "protocol": {}}
    write_metrics(directory, {**facts, "counts": counts, "metrics": metrics})
    return directory


def study(directory: Path, count: int, seed: int) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """All artifacts of the study below `directory`: inputs, and what each is."""
    inputs: dict[str, Path] = {}
    given: list[dict[str, Any]] = []

    def add(path: Path, kind: str, line: str, model: str, name: str, objective: Mapping[str, Any]) -> None:
        inputs[str(len(inputs))] = path
        what = {"kind": kind, "line": line, "seed": "", "model": model, "name": name, "objective": dict(objective)}
        given.append({"input": str(len(given)), **what})

    tables = {}
    for line, model in [("", "base"), ("", "teacher"), *((line, one) for line, found in RUNS.items() for one in found)]:
        tables[line, model] = write_model(directory / "tokens" / f"{line}{model}", line, model, count, seed)
        add(tables[line, model], "generate", line, model, "held_out", {"name": line} if line else {})
    for role in ("base", "teacher"):
        add(write_cache(directory / role, tables["", role]), "cache", "", "", role, {})
    for (line, model), (target, *others, many) in SCORES.items():
        for name, value in zip(("target", "one", "two"), (target, *others), strict=True):
            path = directory / "scores" / f"{line}-{model}-{name}"
            add(write_scores(path, name, value, many), "measure", line, model, name, {"name": line})
    return inputs, given


def analyse_all(directory: Path, count: int, seed: int, names: Sequence[str], report: Callable[..., None]) -> None:
    """Writes the study to `directory`/study, and what each analysis finds to `directory`/<name>."""
    from evaluation import analyse, analyses

    inputs, given = study(directory / "study", count, seed)
    for name in names:
        needs = analyses.load(name).needs
        kept = [one for one in given if one["kind"] in needs]
        output = directory / name
        output.mkdir()
        analyse.run(
            SimpleNamespace(analysis=name, settings={}, given=kept, target="target"), inputs, output, output, report
        )


NAMES = ("plateaus", "targets", "drift", "exploration", "difficulty", "alignment", "trade_off", "tokens")


def main(argv: list[str] | None = None) -> int:
    """The command; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.analyses.synthetic", description=__doc__)
    parser.add_argument("directory", type=Path, help="an empty or new directory")
    parser.add_argument("--chats", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=NAMES, help="repeatable; all without it")
    arguments = parser.parse_args(argv)
    if arguments.directory.exists() and any(arguments.directory.iterdir()):
        print(f"error: {arguments.directory}: not empty; name a new directory", file=sys.stderr)
        return 2
    arguments.directory.mkdir(parents=True, exist_ok=True)
    names = arguments.only or list(NAMES)
    analyse_all(arguments.directory, arguments.chats, arguments.seed, names, lambda *_, **__: None)
    for path in sorted(arguments.directory.glob("*/figures/*.png")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

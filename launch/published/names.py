"""The papers' names of benchmarks and metrics in ours, and on which grid a printed score has to lie."""

from __future__ import annotations

import re

BENCHMARKS = {
    "MATH-500": "math500", "MATH-OAI": "math500", "Math500": "math500", "math": "math500",
    "AIME 23-26": "aime23_26", "AIME24": "aime24", "aime24": "aime24", "aime25": "aime25",
    "AMC23": "amc23", "amc23": "amc23", "gsm8k": "gsm8k", "gaokao": "gaokao2023en", "college": "college_math",
    "OlympiadBench": "olympiadbench", "Olympiad Bench": "olympiadbench", "olympiad": "olympiadbench",
    "Minerva Math": "minerva_math", "MBPP+": "mbpp_plus", "HE+": "humaneval_plus", "HumanEval+": "humaneval_plus",
    "LCB v5": "livecodebench_v5", "LCB v6": "livecodebench_v6", "MMLU": "mmlu", "MedQA": "m23k_medqa",
    "MMLU-Medical": "mmlu_medical", "MedMCQA": "medmcqa", "MedMC": "m23k_medmcqa", "PubMed": "m23k_pubmedqa",
    "MMLU-P": "m23k_mmlu_pro", "GPQA": "m23k_gpqa", "Lancet": "m23k_lancet", "MedB (4)": "m23k_medbullets4",
    "MedB (5)": "m23k_medbullets5", "MedX": "m23k_medxpertqa", "NEJM": "m23k_nejm", "MedCalc": "medcalc",
    "ESCI": "esci", "AIME": "aime24",
}  # fmt: skip
_MATH = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
_SED = (*("aime24", "aime25", "amc23", "gsm8k", "math500", "gaokao2023en", "olympiadbench", "college_math"),)
_MEDICAL = tuple(name for name in BENCHMARKS.values() if name.startswith("m23k_"))
_CODE = ("humaneval_plus", "mbpp_plus", "livecodebench_v5", "livecodebench_v6")
_LP = (
    ("math500", "pass@1"), ("math500", "pass@16"), ("aime23_26", "pass@1"), ("aime23_26", "pass@32"),
    ("mbpp_plus", "pass@1"), ("mbpp_plus", "pass@10"), ("humaneval_plus", "pass@1"), ("humaneval_plus", "pass@10"),
    ("mmlu", "pass@1"),
)  # fmt: skip
_MEANS = {
    ("prift", "Average"): _MATH,
    ("prift", "Average (5 math benchmarks)"): _MATH,
    ("prift", "Avg"): _CODE,
    ("prift", "Avg."): ("m23k_medqa", "mmlu_medical", "medmcqa"),
    ("prift", "Average (MMLU-Medical, MedQA, MedMCQA)"): ("mmlu_medical", "m23k_medqa", "medmcqa"),
    ("sed_sft", "average"): _SED,
    ("target_sft", "Avg.", "T1"): _MATH,
    ("target_sft", "Avg.", "T2"): _MEDICAL,
    ("target_sft", "Avg.", "T6"): _MATH,
}
_ONE = ("avg@8", "avg@16", "acc", "acc (1 sample)", "max acc", "5-shot acc", "average of 8 benchmarks")

# Problems of the sets that the papers score.
SIZES = {
    "math500": 500, "aime23_26": 120, "aime24": 30, "aime25": 30, "amc23": 40, "gsm8k": 1319, "gaokao2023en": 385,
    "olympiadbench": 675, "college_math": 2818, "minerva_math": 272, "mbpp_plus": 378, "humaneval_plus": 164,
    "livecodebench_v5": 880, "livecodebench_v6": 1055, "m23k_medqa": 1273, "medmcqa": 4183, "m23k_medmcqa": 4183,
    "m23k_pubmedqa": 1000, "m23k_mmlu_pro": 1535, "m23k_gpqa": 390, "m23k_lancet": 412, "m23k_medbullets4": 308,
    "m23k_medbullets5": 308, "m23k_medxpertqa": 1449, "m23k_nejm": 603, "mmlu": 14042,
}  # fmt: skip
# Samples of a problem, where it is not one.
_SAMPLES = {
    "lp_sft": {"math500": 16, "aime23_26": 32, "mbpp_plus": 20, "humaneval_plus": 20},
    "sed_sft": {"aime24": 8, "aime25": 8, "amc23": 8},
    "prift": dict.fromkeys(_MATH, 16),
    "target_sft": {**dict.fromkeys(_MATH, 16), **dict.fromkeys(_MEDICAL, 16)},
    "talr": {},
}


def our_metric(metric: str) -> str:
    """Our name of a printed metric, or "" where it is no score of ours."""
    if re.fullmatch(r"pass@\d+", metric):
        return metric
    return "pass@1" if metric in _ONE else "self_bleu" if metric.startswith("Self-BLEU") else ""


def our_scores(paper: str, table: str, benchmark: str, metric: str) -> tuple[tuple[str, str], ...]:
    """The (benchmark or task, metric) pairs of ours whose mean a printed cell is; () for one that we do not score."""
    if (paper, benchmark, metric) == ("lp_sft", "Avg.", "mean of displayed scores"):
        return _LP
    ours = our_metric(metric)
    names = _MEANS.get((paper, benchmark, table)) or _MEANS.get((paper, benchmark))
    if names is None:
        names = (BENCHMARKS[benchmark],) if benchmark in BENCHMARKS else ()
    return tuple((name, ours) for name in names) if ours else ()


def off_grid(paper: str, scores: tuple[tuple[str, str], ...], value: str) -> bool:
    """Whether a printed percentage is no multiple of one over the answers that it counts, rounded as it is printed.

    Answers are problems times samples of a mean score, problems of pass@k with k samples; of other cells nothing is
    said.
    """
    if len(scores) != 1 or scores[0][0] not in SIZES:
        return False
    name, metric = scores[0]
    samples = _SAMPLES[paper].get(name, 1)
    if metric == "self_bleu" or (metric != "pass@1" and metric != f"pass@{samples}"):
        return False
    answers = SIZES[name] * (samples if metric == "pass@1" else 1)
    printed, digits = float(value), len(value.partition(".")[2])
    nearest = 100 * round(printed * answers / 100) / answers
    return abs(nearest - printed) > 0.5 * 10**-digits + 1e-9

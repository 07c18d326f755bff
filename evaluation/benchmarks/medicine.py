"""Medicine: examinations and clinical calculations."""

from __future__ import annotations

import re

from evaluation.benchmarks._files import Row
from evaluation.benchmarks.contract import TAGGED, THINK, Messages, Published, letter, options, user

M1 = "https://github.com/UCSC-VLAA/m1"
M1_REVISION = "c65dfc6923abefbe2567f39996b182dbdce13562"
MEDCALC = "https://github.com/ncbi-nlp/MedCalc-Bench"
MEDCALC_REVISION = "20b10f9d66a8c3b0356ae3138533f5ec91666b6a"
MMLU_MEDICAL = {
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
}


def _m23k(row: Row) -> tuple[Messages, str]:
    return options(row["question"], row["options"], row["answer_idx"])


def _medmcqa(row: Row) -> tuple[Messages, str]:
    letters = dict(zip("ABCD", (row["opa"], row["opb"], row["opc"], row["opd"]), strict=True))
    return options(row["question"], letters, letter("cop", row["cop"]))


def _mmlu(row: Row) -> tuple[Messages, str]:
    return options(row["question"], dict(zip("ABCD", row["choices"], strict=True)), letter("answer", row["answer"]))


def _medcalc(row: Row) -> tuple[Messages, str]:
    text = (
        "Compute a score or value for a patient. Think step by step.\n"
        f"Patient note:\n{row['Patient Note']}\nTask:\n{row['Question']}\n"
        f'{TAGGED}, as JSON: <answer>{{"answer": "short answer"}}</answer>.'
    )
    kind, truth = row["Output Type"], row["Ground Truth Answer"]
    if "week" in truth:
        weeks, days = re.findall(r"[0-9]+", truth)
        truth = f"{weeks} weeks, {days} days"
    elif kind == "decimal":
        truth = f"[{row['Lower Limit']}, {row['Upper Limit']}]"
    elif kind == "integer":
        # An integer is right if it rounds to the truth.
        truth = f"[{float(truth) - 0.5}, {float(truth) + 0.5}]"
    return user(text, THINK), truth


def _medcalc_grader(row: Row) -> str:
    numeric = row["Output Type"] in ("decimal", "integer") and "week" not in row["Ground Truth Answer"]
    return "range" if numeric else "date"


def _m1(name: str, key: str) -> Published:
    columns = {"question": str, "options": dict, "answer_idx": str}
    address = f"{M1}: m1_eval_data.json, written by src/collect_eval_data/collect_eval_data.py"
    return Published(name, address, M1_REVISION, columns, _m23k, "choice", key=key)


medmcqa = Published(
    "medmcqa",
    "openlifescienceai/medmcqa:data/validation-00000-of-00001.parquet",
    "91c6572c454088bf71b679ad90aa8dffcd0d5868",
    {"question": str, "opa": str, "opb": str, "opc": str, "opd": str, "cop": int},
    _medmcqa,
    "choice",
    "id",
)
mmlu_medical = Published(
    "mmlu_medical",
    "cais/mmlu:all/test-00000-of-00001.parquet",
    "c30699e8356da336a370243923dbaf21066bb9fe",
    {"question": str, "subject": str, "choices": list, "answer": int},
    _mmlu,
    "choice",
    where=lambda row: row["subject"] in MMLU_MEDICAL,
)
m23k_medmcqa = _m1("m23k_medmcqa", "MedMCQA_validation")
m23k_medqa = _m1("m23k_medqa", "MedQA_USLME_test")
m23k_pubmedqa = _m1("m23k_pubmedqa", "PubMedQA_test")
m23k_mmlu_pro = _m1("m23k_mmlu_pro", "MMLU-Pro_Medical_test")
m23k_gpqa = _m1("m23k_gpqa", "GPQA_Medical_test")
m23k_lancet = _m1("m23k_lancet", "Lancet")
m23k_nejm = _m1("m23k_nejm", "NEJM")
m23k_medbullets4 = _m1("m23k_medbullets4", "MedBullets_op4")
m23k_medbullets5 = _m1("m23k_medbullets5", "MedBullets_op5")
m23k_medxpertqa = _m1("m23k_medxpertqa", "MedXpertQA")
medcalc = Published(
    "medcalc",
    f"{MEDCALC}/blob/main/datasets/test_data.csv",
    MEDCALC_REVISION,
    {
        "Output Type": str,
        "Patient Note": str,
        "Question": str,
        "Ground Truth Answer": str,
        "Lower Limit": str,
        "Upper Limit": str,
    },
    _medcalc,
    _medcalc_grader,
    "Row Number",
)

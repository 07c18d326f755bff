"""Shopping: how products match queries."""

from __future__ import annotations

from evaluation.benchmarks._files import Row
from evaluation.benchmarks.contract import TAGGED, THINK, Messages, Published, user


def _esci(row: Row) -> tuple[Messages, str]:
    labels = {"E": "0", "S": "1", "C": "2", "I": "3"}
    product = "\n".join(str(row[name]) for name in ("product_title", "product_description") if row.get(name))
    text = (
        "Classify how a product matches a query: 0 = Exact, 1 = Substitute, 2 = Complement, 3 = Irrelevant.\n"
        f"Query:\n{row['query']}\nProduct:\n{product}\nThink step by step. {TAGGED}: <answer>0, 1, 2 or 3</answer>."
    )
    return user(text, THINK), labels[row["esci_label"][0].upper()]


esci = Published(
    "esci",
    "your own esci.parquet: 10,000 rows sampled from the test split of the Shopping Queries data set, joined with "
    "its products",
    "arXiv:2206.06588, https://github.com/amazon-science/esci-data",
    {"query": str, "product_title": str, "esci_label": str},
    _esci,
    "exact",
    "example_id",
)

"""Whether what a report compares was made with the same packages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from launch.store import Record


def different_packages(records: Iterable[Record]) -> str:
    """A sentence naming every package of which the records show several versions, and of how many stages; else ""."""
    made = [record.packages for record in records]
    names = sorted({name for packages in made for name in packages})
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name in names:
        found[name].update(packages.get(name, "none") for packages in made)
    differing = [
        f"{name} " + ", ".join(f"{version} ({count} stages)" for version, count in sorted(versions.items()))
        for name, versions in found.items()
        if len(versions) > 1
    ]
    if not differing:
        return ""
    return f"Made with different package versions, which may account for differences: {'; '.join(differing)}."

"""What branches and stages are called, so that no two of a plan look alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from launch.recipe.overrides import Assignment

SEED = "seed"  # of training; the one field over which branches are averaged


def branch_parts(branches: Sequence[Sequence[Assignment]]) -> list[tuple[str, ...]]:
    """For each branch the words of its name, one for each of its assignments: `lp_sft`, `lr=0.0001`, `data.seed=1`.

    A field goes by the end of its path that no other field of the plan shares, and `seed` is the training seed alone.
    """
    keys = dict.fromkeys(one.key for axes in branches for one in axes)
    short = {key: _short(key, keys) for key in keys}
    return [tuple(_part(one, short[one.key]) for one in axes) for axes in branches]


def _part(one: Assignment, name: str) -> str:
    text = str(one).split("=", 1)[1]
    return text if one.key in ("objective", "adopt") else f"{name}={text}"


def _short(key: str, keys: Iterable[str]) -> str:
    parts = key.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = parts[start:]
        shared = any(other != key and other.split(".")[-len(end) :] == end for other in keys)
        if not shared and end != [SEED] and not end[0].isdecimal():
            return ".".join(end)
    return key


def without_seed(name: str, overrides: Sequence[str]) -> tuple[str, str]:
    """The name of a branch without its training seed, and `seed=...` (or "")."""
    seed = next((text for text in overrides if text.startswith(f"{SEED}=")), "")
    return " ".join(word for word in name.split(" ") if not seed or word != seed), seed


def titles(
    stages: Mapping[str, tuple[str, str]], users: Mapping[str, Iterable[str]], parts: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Fingerprint -> what logs and tables call a stage: `sft sft`, and where others are called so too, what tells it
    from them (`sft sft lr=0.0001 seed=2`).

    Args:
        stages: fingerprint -> kind and label.
        users: fingerprint -> names of its branches.
        parts: name of a branch -> its words.
    """
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for mark, named in stages.items():
        alike[named].append(mark)
    found: dict[str, str] = {}
    for (kind, label), marks in alike.items():
        common = {mark: _common([parts[name] for name in users[mark]]) for mark in marks}
        every = _common(list(common.values())) if len(marks) > 1 else ()
        for mark in marks:
            own = [word for word in common[mark] if word not in every and word != label.split(".")[0]]
            found[mark] = " ".join([kind, label, *(own if len(marks) > 1 else ())])
    seen = list(found.values())
    return {mark: title if seen.count(title) == 1 else f"{title} {mark[:8]}" for mark, title in found.items()}


def _common(words: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(word for word in words[0] if all(word in other for other in words[1:])) if words else ()

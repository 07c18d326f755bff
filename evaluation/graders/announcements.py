r"""The words that announce an answer: "the final answer would be 4". The graders build their patterns from them.

A pattern is for text in which an answer may stand anywhere (`STATED`), for one whose author settles on something
(`SETTLED`: "should be" as well), or for a choice among options, where nothing else could be meant (`CHOSEN`).
"""

from __future__ import annotations

STATED = ("is", "would be", "must be")
SETTLED = (*STATED, "should be")
CHOSEN = (*SETTLED, "was", "has to be", "will be")
# Behind them a "not" makes of the announcement its opposite.
DENIABLE = (*STATED, "was")
# What may stand in front of "answer".
ADJECTIVES = ("final", "correct")


def any_of(words: tuple[str, ...]) -> str:
    """A pattern for one of the words."""
    return f"(?:{'|'.join(words)})"

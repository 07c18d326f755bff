"""The program in a response: which of its fenced blocks, and where a block ends."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
from dataclasses import dataclass

THOUGHTS = "</think>"
TAGS = (("<answer>", "</answer>"), ("[PYTHON]", "[/PYTHON]"), ("[BEGIN]", "[DONE]"))
OPENING = re.compile(r"^(?P<indent>[ \t>]*)(?:[-*+][ \t]+|\d+[.)][ \t]+)?(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[^`\n]*)$")
PYTHON = re.compile(r"^\{?\.?(?:python|py|ipython|cpython|pypy|sage)[\d.]*\b", re.IGNORECASE)
READS = re.compile(r"\b(?:stdin|fileinput)\b|\b(?:input|open|read|readline|readlines)\s*\(")
INLINE = re.compile(r"```(?:python[\d.]*\b|py\b)?[ \t]*([^`\n][^`]*)```", re.IGNORECASE)
PRINTS = re.compile(r"\b(?:print|stdout|write)\b")
QUOTES = re.compile(r"#[^\n]*|'''|\"\"\"|'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
CODE_LINE = re.compile(r"^(?:import |from \S+ import |def |async def |class |@|if __name__)")
# Of a response without a fence: how many ends are tried, and how long it may be to be parsed at all.
TRIES, LONGEST = 100, 1 << 17


@dataclass(frozen=True)
class Block:
    """A fenced block: its language (`python`, `none` or `other`) and its text."""

    language: str
    text: str


def extract_code(response: str, entry: str = "") -> str:
    """The program of a response, without the fences.

    What was thought is left out, and where the answer is tagged, all around it. Of several blocks it is one in Python
    (`python`, `py`, `python3`, in any case), else one in no language: with an `entry`, the last that defines this
    function (or a class `Solution`, or imports it), so that an example of its use after it is none; else the last that
    reads input, else the last that prints, else the last. Earlier blocks that define what it uses are put before it. A
    block ends where its fence is closed outside a string, or with the response. Without a block: the response, or the
    part of it that is Python.
    """
    text = response.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    text = text.rpartition(THOUGHTS)[2] if THOUGHTS in text else text
    for opening, closing in TAGS:
        start = text.rfind(opening)
        if start >= 0:
            inside = text[start + len(opening) :].partition(closing)[0]
            if "```" in inside or parses(inside):
                text = inside
                break
    found = blocks(text)
    if not found:
        return _unfenced(text)
    chosen = [block.text for block in found if block.language == "python"] or [
        block.text for block in found if block.language == "none"
    ]
    if not chosen:
        chosen = [block.text for block in found]
    if entry:
        wanted = (
            lambda text: _makes(text, entry),
            lambda text: defines(text, "Solution"),
            lambda text: defines(text, entry),
        )
    else:
        wanted = (lambda text: READS.search(text), lambda text: PRINTS.search(text))
    for is_wanted in wanted:
        if fitting := [place for place, text in enumerate(chosen) if is_wanted(text)]:
            return _with_helpers(chosen, fitting[-1])
    return _with_helpers(chosen, len(chosen) - 1)


def defines(program: str, name: str) -> bool:
    """Whether the text of a program defines, imports or assigns `name` at its top, or under a condition there."""
    word = re.escape(name)
    imported = rf"^from[ \t]+\S+[ \t]+import\b[^\n]*\b{word}\b|^import[ \t][^\n]*\b{word}\b"
    if _makes(program, name) or re.search(imported, program, re.MULTILINE):
        return True
    # A program in which it is indented, or the body of a function in which it is.
    return re.search(rf"^[ \t]+def[ \t]+{word}\b", program, re.MULTILINE) is not None and parses(program)


def _makes(program: str, name: str) -> bool:
    word = re.escape(name)
    made = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{word}\b|^{word}[ \t]*(?::[^=\n]*)?=(?!=)"
    return re.search(made, program, re.MULTILINE) is not None


def _with_helpers(programs: list[str], place: int) -> str:
    """A program, and before it those of the earlier ones that define what it lacks. One that does not parse has none,
    and neither has one that defines again what is defined after it: a draft."""
    program = programs[place]
    names = _names_of(program)
    if place == 0 or names is None:
        return program
    made, used = names
    for earlier in reversed(programs[:place]):
        its = _names_of(earlier)
        if its is not None and its[0] & (used - made) and not its[0] & made:
            program = f"{earlier.rstrip()}\n\n{program}"
            made, used = made | its[0], used | its[1]
    return program


def _names_of(program: str) -> tuple[set[str], set[str]] | None:
    """The names that a program defines at its top, and the global ones that it uses anywhere, but for Python's own;
    None where it does not compile."""
    if not parses(program):
        return None
    try:
        waiting = [symtable.symtable(program, "<program>", "exec")]
    except (SyntaxError, ValueError, RecursionError):
        return None
    made = {symbol.get_name() for symbol in waiting[0].get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    made |= {child.get_name() for child in waiting[0].get_children()}
    used: set[str] = set()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        top = table.get_type() == "module"
        used |= {one.get_name() for one in table.get_symbols() if one.is_referenced() and (top or one.is_global())}
    return made, used - vars(builtins).keys()


def tested_function(test: str) -> str:
    """The function that a test text calls: the argument of `check(f)`, else what its first `assert` calls, before any
    of Python's own names (`assert set(f(1)) == {2}`); empty if there is none."""
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for statement in reversed(tree.body):
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check":
            return next((one.id for one in call.args if isinstance(one, ast.Name)), "")
    asserted = next((node.test for node in ast.walk(tree) if isinstance(node, ast.Assert)), None)
    if asserted is None:
        return ""
    called = [
        node.func.id for node in ast.walk(asserted) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    return next((name for name in called if name not in vars(builtins)), called[0] if called else "")


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a text, in order; the last one may have no end. Text before a fence that is only closed is
    one too."""
    lines = text.split("\n")
    found: list[Block] = []
    number = 0
    while number < len(lines):
        opening = OPENING.match(lines[number])
        if opening is None:
            number += 1
            continue
        rest = lines[number + 1 :]
        if not found and not opening["tag"] and not any(line.strip() for line in rest):
            # The prompt has ended with the opening fence.
            return [Block("none", "\n".join(lines[:number]))] if any(map(str.strip, lines[:number])) else []
        end = _end(lines, number + 1, opening["fence"])
        indent = len(opening["indent"].expandtabs(4))
        body = [_dedent(line, indent) for line in lines[number + 1 : end]]
        if end < len(lines) and not _is_fence(lines[end], opening["fence"]):  # closed at the end of its last line
            body.append(_dedent(lines[end].rstrip().removesuffix(opening["fence"]), indent))
        tag = opening["tag"].strip()
        language = "python" if PYTHON.match(tag) else "other" if tag else "none"
        text = "\n".join(body) + ("\n" if body else "")
        whole = textwrap.dedent(text)
        found.append(Block(language, whole if whole != text and CODE_LINE.match(whole) else text))
        number = end + 1
    return found


def _end(lines: list[str], start: int, fence: str) -> int:
    """The line that closes a block: the first that is a fence outside a string of the program, or ends in one, else the
    first that is one."""
    first, quote = len(lines), ""
    for number in range(start, len(lines)):
        if _is_fence(lines[number], fence):
            if not quote:
                return number
            first = min(first, number)
        elif not quote and fence[0] == "`" and lines[number].rstrip().endswith(fence):
            return number
        quote = _open_quote(lines[number], quote)
    return first


def _is_fence(line: str, fence: str) -> bool:
    stripped = line.strip()
    return bool(stripped) and set(stripped) == {fence[0]} and len(stripped) >= len(fence)


def _open_quote(line: str, quote: str) -> str:
    """The triple quote that is open after a line, given the one that is open before it."""
    position = 0
    while True:
        if quote:
            end = line.find(quote, position)
            while end > 0 and line[end - 1] == "\\":
                end = line.find(quote, end + 1)
            if end < 0:
                return quote
            position, quote = end + 3, ""
        token = QUOTES.search(line, position)
        if token is None:
            return ""
        position = token.end()
        if token[0] in ("'''", '"""'):
            quote = token[0]


def _dedent(line: str, indent: int) -> str:
    taken = 0
    while taken < indent and line[taken : taken + 1] in (" ", "\t", ">"):
        taken += 1
    return line[taken:]


def _unfenced(text: str) -> str:
    """The text itself where it is Python; else its longest part from a line of code on; else the text."""
    if parses(text) or parses(f"def f():\n{text}"):
        return text
    if inline := [part for part in INLINE.findall(text) if parses(part)]:
        return f"{inline[-1].strip()}\n"
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if CODE_LINE.match(line)), None)
    if start is None or len(text) > LONGEST:
        return text
    for end in range(len(lines), max(start, len(lines) - TRIES), -1):
        if parses(part := "\n".join(lines[start:end])):
            return part + "\n"
    return text


def parses(text: str) -> bool:
    """Whether a text, not too long, is Python."""
    if len(text) > LONGEST or not text.strip():
        return False
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True

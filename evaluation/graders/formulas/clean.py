"""One spelling for formulas: LaTeX, plain text and Unicode to a small common LaTeX.

The marks of the result: `°` degrees, `%` percent, AND and OR (the logical signs); everything else is LaTeX without
sizes, spaces that part nothing, currency and delimiters.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

AND, OR, DEGREE = "\N{LOGICAL AND}", "\N{LOGICAL OR}", "\N{DEGREE SIGN}"

_UNICODE = {
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-",
    "\N{FULLWIDTH HYPHEN-MINUS}": "-", "\N{FULLWIDTH PLUS SIGN}": "+", "\N{PLUS-MINUS SIGN}": "\\pm ",
    "\N{MULTIPLICATION SIGN}": "\\cdot ", "\N{DOT OPERATOR}": "\\cdot ", "\N{MIDDLE DOT}": "\\cdot ",
    "\N{DIVISION SIGN}": "/", "\N{FRACTION SLASH}": "/", "\N{DIVISION SLASH}": "/", "\N{INFINITY}": "\\infty ",
    "\N{GREEK SMALL LETTER PI}": "\\pi ",
    "\N{LESS-THAN OR EQUAL TO}": "\\le ", "\N{LESS-THAN OR SLANTED EQUAL TO}": "\\le ",
    "\N{GREATER-THAN OR EQUAL TO}": "\\ge ", "\N{GREATER-THAN OR SLANTED EQUAL TO}": "\\ge ",
    "\N{NOT EQUAL TO}": "\\ne ",
    "\N{ALMOST EQUAL TO}": "\\approx ", "\N{ELEMENT OF}": "\\in ", "\N{UNION}": "\\cup ", "\N{INTERSECTION}": "\\cap ",
    "\N{SET MINUS}": "\\setminus ", "\N{EMPTY SET}": "\\emptyset ", "\N{DOUBLE-STRUCK CAPITAL R}": "\\mathbb{R}",
    "\N{DOUBLE-STRUCK CAPITAL Z}": "\\mathbb{Z}", "\N{DOUBLE-STRUCK CAPITAL N}": "\\mathbb{N}",
    "\N{FULLWIDTH COMMA}": ",", "\N{IDEOGRAPHIC COMMA}": ",", "\N{FULLWIDTH SEMICOLON}": ";",
    "\N{FULLWIDTH COLON}": ":",
    "\N{FULLWIDTH LEFT PARENTHESIS}": "(", "\N{FULLWIDTH RIGHT PARENTHESIS}": ")", "\N{FULLWIDTH PERCENT SIGN}": "%",
    "\N{FULLWIDTH EQUALS SIGN}": "=", "\N{MASCULINE ORDINAL INDICATOR}": DEGREE, "\N{RING OPERATOR}": DEGREE,
    "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{PRIME}": "'", "\N{DOUBLE PRIME}": "''", "\N{ZERO WIDTH SPACE}": "",
    "\N{WORD JOINER}": "", "\N{ZERO WIDTH NO-BREAK SPACE}": "",
    "\N{VULGAR FRACTION ONE HALF}": "\\frac{1}{2}", "\N{VULGAR FRACTION ONE QUARTER}": "\\frac{1}{4}",
    "\N{VULGAR FRACTION THREE QUARTERS}": "\\frac{3}{4}", "\N{VULGAR FRACTION ONE THIRD}": "\\frac{1}{3}",
    "\N{VULGAR FRACTION TWO THIRDS}": "\\frac{2}{3}", "\N{VULGAR FRACTION ONE FIFTH}": "\\frac{1}{5}",
    "\N{VULGAR FRACTION ONE EIGHTH}": "\\frac{1}{8}",
}  # fmt: skip
_GREEK = {
    letter: unicodedata.name(letter).removeprefix("GREEK SMALL LETTER ").lower().replace("lamda", "lambda")
    for letter in map(chr, range(ord("\N{GREEK SMALL LETTER ALPHA}"), ord("ω") + 1))
    if letter not in "\N{GREEK SMALL LETTER FINAL SIGMA}\N{GREEK SMALL LETTER OMICRON}"
}
_TABLE = str.maketrans(
    {
        **_UNICODE,
        **{letter: f"\\{name} " for letter, name in _GREEK.items()},
        **{digit: str(value) for value, digit in ((chr(0xFF10 + n), n) for n in range(10))},
    }
)
_RAISED = {**{digit: str(value) for value, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, "⁻": "-", "⁺": "+"}
_LOWERED = {digit: str(value) for value, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")}

_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|md)?|mbox|hbox|math(?:rm|it|sf|tt|bf|normal|up)|operatorname\*?|boldsymbol|bm)"
    r"\s*\{([^{}]*)\}"
)
_MATRIX = re.compile(r"\\(begin|end)\s*\{(?:[pbBV]|small|dc)?matrix\*?\}")
_ARRAY = re.compile(
    r"[\[(]?\s*\\begin\{array\}\s*(?:\{[^{}]*\})?((?:(?!\\end\{array\}).)*)\\end\{array\}\s*[\])]?", re.DOTALL
)
_LETTER_UNITS = frozenset("mshgLlNJWVAKCFMTHS")
_BEFORE_UNIT = re.compile(r"(?:[\d}°]|\\circ)\s*$")
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|log|ln|exp"
# In this order; each finds what the ones before it left.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", ""),
        (r"[€£¥₹]|\\(?:pounds|euro|yen)(?![A-Za-z])", ""),
        (r"\\num\s*\{([^{}]*)\}|\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{[^{}]*\}", r"\1\2"),
        (r"\$", " "),
        (r"(?<!\\)\\[\[\]()]", " "),
        (r"\\(?:m?left|m?right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|mathstrut|strut|phantom\{[^{}]*\})(?![A-Za-z])", ""),
        # What parts the groups of a long number.
        (r"(?<=\d)\s*\{,\}\s*(?=\d)", ","),
        (r"(?<=\d),?\s*\\[!,]\s*(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\(?:[,;: >/]|q?quad(?![A-Za-z])|thinspace|hspace\*?\{[^{}]*\})|~", " "),
        (r"\\(?:dotsc|dotsb|dots|ldots|cdots)(?![A-Za-z])", r"\\ldots "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=|=<", r"\\le "),
        (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=|=>", r"\\ge "),
        (r"\\not\s*=|\\(?:neq|ne)(?![A-Za-z])|!=", r"\\ne "),
        (r"\\not\s*\\in(?![A-Za-z])", r"\\notin "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:approx|simeq|thickapprox)(?![A-Za-z])|~=", r"\\approx "),
        (r":=|==", "="),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\(?:backslash|smallsetminus)(?![A-Za-z])", r"\\setminus "),
        (r"\\mathbb\s*([A-Z])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\mathbf\{([RZNQC])\}|\\([RZNQ])(?![A-Za-z])", r"\\mathbb{\1\2}"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])", DEGREE),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])\s*", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\*\*", "^"),
        (r"(?<!\^)\*", r"\\cdot "),
        (r"\\%|\\?\bpercent(?:age)?\b|\bpct\b", "%"),
        (r"\\(?:land|wedge)(?![A-Za-z])|(?<![A-Za-z\\])and(?![A-Za-z])", AND),
        (r"\\(?:lor|vee)(?![A-Za-z])|(?<![A-Za-z\\])or(?![A-Za-z])|(?<=[\d)}])or(?=[A-Z]\()", OR),
        (r"(?i)(?<=[\d°)}\s])\s*\bdegrees?\b(?!\s*(?:celsius|fahrenheit|c\b|f\b))", DEGREE),
        (r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?=\s*[\d(^_{{\\]|\s[a-z]\b)", r"\\\1 "),
        (r"(?<![A-Za-z])√\s*", r"\\sqrt"),
        (r"(?i)(?:^|\\text\{)\s*(?:all\s+)?real\s+numbers?\s*\.?\}?\s*$", r"\\mathbb{R}"),
        (r"(?i)^\s*(?:\\text\{)?\s*no\s+(?:real\s+)?solutions?\s*\.?\}?\s*$", r"\\emptyset"),
        (r"\\log\s*_\s*(\w)\s*", r"\\log_{\1} "),
        (r"\s+", " "),
    )
)
_RADICAL = re.compile(r"(?<![\\A-Za-z])sqrt(?![A-Za-z])|\\sqrt\s*(?=\()")
_CALLS = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])")


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """A formula in the common spelling; equal formulas of other content never become one."""
    text = text.translate(_TABLE)
    text = _scripts(text, _RAISED, "^")
    text = _scripts(text, _LOWERED, "_")
    if "matrix" not in text and "array" not in text and "cases" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z{}])", r"\\", text)
    for _ in range(3):  # \textbf{\text{...}}
        replaced = _TEXT.sub(_text, text)
        if replaced == text:
            break
        text = replaced
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _ARRAY.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", text)
    text = _MATRIX.sub(r"\\\1{pmatrix}", text)
    text = _radicals(text)
    text = _arguments(text)
    return _trim(text)


def _scripts(text: str, table: dict[str, str], mark: str) -> str:
    if not any(letter in text for letter in table):
        return text
    return re.sub(f"[{''.join(table)}]+", lambda run: f"{mark}{{{''.join(table[letter] for letter in run[0])}}}", text)


def _text(match: re.Match[str]) -> str:
    """What stands in \\text{...}: a word of the formula, a letter or a number of it, or prose, which stays marked."""
    content = " ".join(match[1].replace("~", " ").replace("\\ ", " ").split())
    if not content:
        return " "
    bare = content.casefold().strip(" ,.")
    if bare in ("and", "or"):
        return f" {bare} "
    if bare in ("%", "\\%", "percent", "percentage", "pct"):
        return "%"
    if bare in ("degree", "degrees", "^\\circ"):
        return DEGREE
    if content in _LETTER_UNITS and _BEFORE_UNIT.search(match.string[: match.start()]):
        return f"\\text{{{content}}}"
    if match.string[match.end() :].lstrip().startswith("_") and re.fullmatch(r"[0-9A-Za-z]*\d[0-9A-Za-z]*", content):
        return content  # 1A_{16}
    if re.fullmatch(r"[A-Za-z]|[-+]?[\d.,/]*\d", content) or "\\" in content:
        return f" {content} " if content[0].isdigit() else content
    if bare in ("sin", "cos", "tan", "sec", "csc", "cot", "log", "ln", "exp", "arcsin", "arccos", "arctan"):
        return f"\\{bare} "
    return f"\\text{{{content}}}"


def _radicals(text: str) -> str:
    """sqrt(x) as \\sqrt{x}."""
    position = 0
    while (match := _RADICAL.search(text, position)) is not None:
        start = match.end()
        while start < len(text) and text[start] == " ":
            start += 1
        end = closing(text, start) if start < len(text) and text[start] == "(" else None
        if end is not None:
            text = f"{text[: match.start()]}\\sqrt{{{text[start + 1 : end]}}}{text[end + 1 :]}"
        elif match[0] == "sqrt":
            text = f"{text[: match.start()]}\\sqrt{text[match.end() :]}"
        position = match.start() + len("\\sqrt")
    return text


def closing(text: str, start: int) -> int | None:
    """Where the bracket at `start` closes, with brackets of any kind nested; None if it does not."""
    depth = 0
    index = start
    while index < len(text):
        letter = text[index]
        if letter == "\\":
            index += 1
            if index < len(text) and text[index] in "{}":
                depth += 1 if text[index] == "{" else -1
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if depth == 0 and index > start:
            return index
        index += 1
    return None


def _arguments(text: str) -> str:
    """\\frac12, \\frac1{72}, \\sqrt3 with braces around each argument."""
    position = 0
    while (match := _CALLS.search(text, position)) is not None:
        at = match.end()
        index = ""
        if match[1] == "sqrt":
            rest = text[at:].lstrip()
            if rest.startswith("[") and "]" in rest:
                at += len(text[at:]) - len(rest)
                end = text.index("]", at)
                index, at = text[at : end + 1], end + 1
        found: list[str] = []
        for _ in range(1 if match[1] == "sqrt" else 2):
            argument, at = _argument(text, at)
            if argument is None:
                break
            found.append(argument)
        head = f"\\{match[1]}{index}"
        if len(found) == (1 if match[1] == "sqrt" else 2):
            text = text[: match.start()] + head + "".join(f"{{{argument}}}" for argument in found) + text[at:]
            position = match.start() + len(head) + 1
        else:
            position = match.end()
    return text


def _argument(text: str, at: int) -> tuple[str | None, int]:
    while at < len(text) and text[at] == " ":
        at += 1
    if at >= len(text) or text[at] in "}])^_=,+-":
        return None, at
    if text[at] == "{":
        end = closing(text, at)
        return (None, at) if end is None else (text[at + 1 : end].strip(), end + 1)
    command = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})?|\\.").match(text, at)
    if command is not None:
        return command[0], command.end()
    return text[at], at + 1


def _trim(text: str) -> str:
    """Without punctuation around it."""
    while True:
        shorter = re.sub(r"(?:[.,;:]|(?<!\\)\\)+$", "", text.strip()).strip()
        shorter = re.sub(r"^[,;:]+", "", shorter).strip()
        if shorter == text:
            return text
        text = shorter


def folded(text: str) -> str:
    """Words alone: without commands of text, spaces, brackets, case and a point at the end."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    return re.sub(r"[\s{}()\[\]\"'`~]", "", text).strip(".").casefold()

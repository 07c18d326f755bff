"""One letter of several."""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.errors import ConfigError
from evaluation.graders.announcements import CHOSEN, any_of
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import after_thoughts, boxes, extract_boxed, extract_tagged

# Signs that are spelt in several ways, as one: 1:1, positions stay.
_PLAIN_SIGNS = {
    **{ord(letter) + 0xFEE0: letter for letter in "ABCDEFGHIJ()[]:"},
    **{ord(sign): "-" for sign in "\N{EN DASH}\N{EM DASH}"},
    **{ord("\N{RIGHT SINGLE QUOTATION MARK}"): "'", ord("【"): "[", ord("】"): "]"},
}
_TAG_LETTER = re.compile(r"^\s*<([A-Za-z])>\s*$")
_SMALL = re.compile(r"(?<![A-Za-z0-9}])[(\[][a-j][)\]]")

# --- what stands around a letter

_WRAPPED = r"[(\[{<\"'*_`$]*"
_CLOSED = r"[)\]}>\"'*_`$]*"
_LETTER = rf"{_WRAPPED}([A-Z]){_CLOSED}"
_LISTED = rf"(?:(?i:both|either|options?|choices?|answers?) )*{_WRAPPED}[A-Z]{_CLOSED}(?![A-Za-z'])"
_LETTERS = rf"{_LISTED}(?:\s*(?:,|/)?\s*(?:and|or|nor|&)?\s*{_LISTED})*"
_ONE = re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z'])")
_MENTION = re.compile(rf"(?<![A-Za-z0-9\\^_.']){_LETTER}(?![A-Za-z0-9'=^_]|\s*[=+^<>]|\s*\\[a-z])")
# "A pretty girl", "I think": an article and a pronoun, unless such a word follows.
_FOLLOWING = re.compile(
    "is|was|are|were|be|because|since|as|for|and|or|but|which|that|with|by|from|due|not|seems|looks|would|should|could|"
    "can|cannot|must|may|might|if|when|in|on|at|the|this|it|we|he|she|they|so|then|therefore|has|does|fits|best|correct|"
    "only|although|though|while|where|who|whose|rather|instead|over|than|nor|neither|alone|here|above|below"
)
_VERBS_OF_I = re.compile("would|should|could|can|cannot|must|may|might|was")
_ARTICLE = re.compile(r"[\"'*_`]*\s+[\"'*_]*([a-z]+)")
_NAMED = re.compile(
    r"(?i)\b(?:vitamin|hepatitis|type|figure|fig\.|group|plan|class|grade|point|angle|appendix|influenza|protein|stage|"
    r"section|part|table|factor|bacteria|cell|panel|side|set|matrix|team)\s*$"
)
_BETWEEN = (
    r"(?:\s+(?:be|is|option|options|choice|choices|answers?|letter|the|correct|right|both|either|it|choose|select|pick|"
    r"go|with|just|simply|that|as|to|out|only|for))*"
)
_DENIED = re.compile(
    r"(?i:\b(?:not|isn't|wasn't|aren't|can't|cannot|couldn't|won't|wouldn't|doesn't|don't|shouldn't|isnt|cant|"
    r"neither|nor|never|rul(?:es?|ed|ing) out|eliminat(?:e|es|ed|ing)|exclud(?:e|es|ed|ing)|reject(?:s|ed|ing)?|"
    r"discard(?:s|ed|ing)?|dismiss(?:es|ed|ing)?|instead of|rather than|than|unlike|except|over|"
    r"(?:incorrect|wrong|false)(?: (?:answers?|options?|choices?))?(?: (?:is|are|would be))?:?)"
    rf"{_BETWEEN})\s+(?P<letters>{_LETTERS})"
)
_REFUTED = re.compile(
    rf"(?<![A-Za-z])(?P<letters>{_LETTERS})[,:]?\s*(?i:(?:"
    r"(?:is|are|was|were|can|could|would|does|do|should|must|will|has|have|looks?|seems?)\s*"
    r"(?:all |both |also |clearly |therefore |then |simply |just )*"
    r"(?:n't\b|not\b|incorrect|wrong|false|invalid|impossible|ruled|out\b|eliminated|excluded|rejected|tempting|"
    r"an?\s+(?:\w+\s+)?(?:distractor|trap|mistake))"
    r"|cannot\b|can't\b|isn't\b|aren't\b|doesn't\b|don't\b|fails?\b))"
)
_AFFIRMED = re.compile(
    r"(?i:\b(?:answer|option|choice|choose|chose|select|pick|picks|go(?:ing)? with|going for|"
    r"leav(?:es|ing)(?: us with| only)?|must be|has to be|would be|should be|therefore|thus|hence|so|it's|it is|is|"
    r"remains|say|prefer|favor)"
    r"(?:\s+(?:is|are|the|an|it|it's|must|be|option|choice|answer|letter|correct|right|best|most|likely|definitely|"
    r"clearly|probably|really|actually|surely|now|still|only|sure|for|with|to|that|would|should))*)"
    rf"[\s:*_=]+{_LETTER}(?![A-Za-z0-9'=^])"
)
_PRAISED = re.compile(
    rf"(?<![A-Za-z0-9]){_LETTER}\s+(?i:(?:is|was|seems|must be|would be|looks)\s+"
    r"(?:clearly |definitely |therefore |indeed |also |probably |most likely )*"
    r"(?:the\s+)?(?:only\s+)?(?:correct|right|best|better|answer|true|most|one|remaining|what)|is(?=\s*[.!]?\s*$))"
)
_LABEL = re.compile(
    r"\s*(?:(?i:the|final|correct|best|my|answer|option|choice|is|letter)\b[\s:]*)*"
    r"(?:[(\[{<]\s*(?P<wrapped>[A-Za-z])\s*[)\]}>]|(?P<marked>[A-Za-z])\s*[.):](?=\s|$|[^A-Za-z])"
    r"|(?P<alone>[A-Za-z])\s*$|(?P<led>[A-Z])(?=[\s,;-]))"
)
_REASON = re.compile(r"[\s,;-]*\b(?:because|since|as|for)\b")
_ANOTHER = re.compile(r"\s*(?:,|/|and\b|or\b|&)\s*(?:and |or )?[(\[]?[A-Z][)\]]?(?![A-Za-z'])")
_ANNOUNCED = re.compile(
    r"(?i:\b(?:answer|option|choice|ans)(?:\s+(?:choice|option|letter))?\b"
    r"(?:\s+(?:to|for|here)\b[^.:\n]{0,60}?)?[*_\"'\s]*"
    rf"(?:\b{any_of(CHOSEN)}\b[*_]*\s*:?|[:=]|->|→|-(?=\s)))|答案\s*(?:是|为|:)*"
)
_NOTHING = re.compile(
    r"(?i)[\s*_(:]*(?:none|unknown|not sure|unsure|i (?:do not|don't|am not)|cannot be determined|n/?a\b|no answer|"
    r"neither)"
)
_REVISED = re.compile(r"(?i)\b(?:actually|wait|correction|scratch that|on second thought|on reflection)\b[,:.!]?")
# Small letters stand for options only where an answer is announced: "the answer is c, since ...".
_SMALL_LED = re.compile(r"[\s:(\[]*([b-hj])[)\]]?(?:\s*[,;]|\s+(?:because|since|as|for|and not|not|rather)\b)")
_BOXED_AHEAD = re.compile(r"[\s$*(\[\\]*\\?(?:boxed|fbox)\s*\{|[\s*]*<answer>")
_PRINTED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf)?|math(?:rm|bf|it|sf|bb)|mbox|boldsymbol|bm|operatorname)\s*\{([^{}]*)\}"
)


def _grade_choice(response: str, answer: str, _: str) -> Grade:
    expected = answer.strip().strip("()[]. ").upper()
    if not re.fullmatch("[A-Z]", expected):
        raise ConfigError(f"answer: {answer!r} is not one letter, as the choice grader needs")
    found = chosen(after_thoughts(response))
    return Grade(False, "no_answer") if not found else Grade(found == expected, "ok")


def chosen(response: str) -> str:
    """The letter that a response settles on; several of them if it leaves it open, "" for none.

    The last of boxes, tags and announcements that names a letter decides; then a label in front; then what the text
    affirms, last of all the only letter or the last one that it does not deny.
    """
    response = _TAG_LETTER.sub(r"(\1)", response.translate(_PLAIN_SIGNS))
    response = _SMALL.sub(lambda match: match[0].upper(), response)
    marked = sorted(_marked(response), key=lambda pair: pair[0])
    for _, found in reversed(marked):
        if found == "-":
            return ""
        if found:
            return found
    text = _plain(_without_boxes(response))
    if re.fullmatch(r"(?i)\W*n/a\W*", text):
        return ""
    listed = _listed(text)
    if len(listed) > 1:
        return listed
    leading = _LABEL.match(text)
    if leading is not None:
        letter = _of_label(leading, text)
        others = {m.upper() for m in re.findall(r"(?<![A-Za-z0-9])\(?([A-Za-z])[.):](?=\s|$)", text)}
        if letter and (leading["led"] is None or _REASON.match(text, leading.end())) and others <= {letter}:
            return letter
    return _argued(text, first=False)


def _marked(response: str) -> Iterator[tuple[int, str]]:
    """(position, letter) of the answers that are marked as such; "-" for one that says there is none."""
    spans = boxes(response)
    if spans:
        run = extract_boxed(response)
        letters = [_boxed(content) for content in run]
        yield spans[-1][0], "".join(dict.fromkeys(letters)) if all(letters) else ""
    tagged = extract_tagged(response)
    if tagged is not None:
        inner = extract_boxed(tagged)
        yield (
            response.lower().rindex("<answer>"),
            _boxed(inner[-1] if inner else tagged) or _argued(_plain(tagged), True),
        )
    for match in _ANNOUNCED.finditer(response):
        rest = response[match.end() :].lstrip(" \t*_\n:").partition("\n")[0]
        if _BOXED_AHEAD.match(rest):
            continue
        yield match.start(), _announced(_plain(rest))


def _announced(text: str) -> str:
    if _NOTHING.match(text):
        return "-"
    for revised in reversed(list(_REVISED.finditer(text))):
        letter = _argued(text[revised.end() :], first=True)
        if letter:
            return letter
    listed = _listed(re.split(r"[.!](?:\s|$)", text, maxsplit=1)[0])
    if len(listed) > 1:
        return listed
    small = _SMALL_LED.match(text)
    if small is not None:
        return small[1].upper()
    label = _LABEL.match(text)
    if label is not None:
        letter = _of_label(label, text)
        if letter:
            return letter
    return _argued(text, first=True)


def _listed(text: str) -> str:
    """The letters of a text that is nothing but a list of them: "A or B"."""
    found = re.fullmatch(rf"\W*({_LETTERS})\W*", text)
    return "".join(dict.fromkeys(_ONE.findall(found[1]))) if found is not None else ""


def _of_label(label: re.Match[str], text: str) -> str:
    """The letter of a label, if it is no article and no pronoun."""
    letter = label["wrapped"] or label["marked"] or label["alone"] or label["led"]
    start = label.start(label.lastgroup or 0)
    if label["led"] is not None and not _stands(text, start, label.end()):
        return ""
    if label["led"] is not None and _ANOTHER.match(text, label.end()):
        # "A or B", "A and C": both are named.
        return _argued(text, first=True)
    return letter.upper()


def _boxed(content: str) -> str:
    """The letter of a box or tag: a label, alone or in front of its text; "" where it holds something else."""
    text = _plain(content)
    if re.search(r"\\[A-Za-z]", text):
        return ""
    listed = _listed(text)
    if listed:
        return listed
    label = _LABEL.match(text)
    letter = _of_label(label, text) if label is not None else ""
    return letter or ("" if re.search(r"[=<>^]", text) else _argued(text, first=True))


def _plain(text: str) -> str:
    """Without what prints a letter bold or as text."""
    for _ in range(3):
        text = _PRINTED.sub(r"\1", text)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[,;: !()\[\]]|\\q?quad|[$*`~]|</?[a-z]+>", " ", text)
    return re.sub(r"(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9{])", " ", text).strip()


def _without_boxes(response: str) -> str:
    for start, end, _ in reversed(boxes(response)):
        response = response[:start] + " " + response[end:]
    return response


def _stands(text: str, start: int, end: int) -> bool:
    """Whether the letter at `start` stands for an option."""
    letter = text[start]
    if letter in "AI":
        following = _ARTICLE.match(text, end)
        if following is not None and (
            not _FOLLOWING.fullmatch(following[1]) or (letter == "I" and _VERBS_OF_I.fullmatch(following[1]))
        ):
            return False
    return _NAMED.search(text[:start]) is None


def _argued(text: str, first: bool) -> str:
    """The letter that a text argues for; `first`: of several without a verdict the first, else the last."""
    denied: set[int] = set()
    for pattern in (_DENIED, _REFUTED):
        for match in pattern.finditer(text):
            start = match.start("letters")
            places = [start + m.start() for m in _ONE.finditer(match["letters"])]
            # "Not A, C is right": what is praised behind the first letter is not denied with it.
            praised = {m.start(1) for m in _overlapping(_PRAISED, text)} if pattern is _DENIED else set()
            denied |= {place for index, place in enumerate(places) if index == 0 or place not in praised}
    kept = [
        (m.start(1), m[1])
        for m in _MENTION.finditer(text)
        if m.start(1) not in denied and _stands(text, m.start(1), m.end())
    ]
    if not kept:
        return ""
    places = {place for place, _ in kept}
    if first and len(_listed(text)) > 1:
        return "".join(dict.fromkeys(letter for _, letter in kept))
    affirmed = [m for pattern in (_AFFIRMED, _PRAISED) for m in _overlapping(pattern, text) if m.start(1) in places]
    if affirmed:
        return max(affirmed, key=lambda m: m.start(1))[1] if not first or not _leads(kept, text) else kept[0][1]
    return kept[0][1] if first else kept[-1][1]


def _leads(kept: list[tuple[int, str]], text: str) -> bool:
    """Whether a text starts with its letter: "B, since C is ..."."""
    return not re.search(r"[A-Za-z]", text[: kept[0][0]])


def _overlapping(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    position = 0
    while (match := pattern.search(text, position)) is not None:
        yield match
        position = match.start() + 1


choice = Grader("choice", _grade_choice, version=2)

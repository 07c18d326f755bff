"""Properties of the graders of exact values: every way of writing a value is it, and no other value ever is."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from evaluation.graders.formulas import symbolic
from evaluation.graders.formulas.clean import clean
from evaluation.graders.formulas.compare import equal
from evaluation.graders.formulas.structure import read
from evaluation.grading import Grade, grade_answer

EXAMPLES = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def same(reference: str, found: str) -> bool:
    return equal(read(reference), read(found))


def spellings(value: Fraction) -> list[str]:
    """Exact ways of writing a number."""
    sign, size = "-" if value < 0 else "", abs(value)
    above, below = size.numerator, size.denominator
    found = [f"{sign}\\frac{{{above}}}{{{below}}}", f"{sign}{above}/{below}", f"\\frac{{{sign}{above}}}{{{below}}}",
             f"{sign}\\dfrac{{{3 * above}}}{{{3 * below}}}"]  # fmt: skip
    if below == 1:
        found += [
            f"{sign}{above}",
            f"{sign}{above:,}",
            f"{sign}{above}.0",
            f"{sign}{above}\\text{{ cm}}",
            f"x = {sign}{above}",
        ]
        found += [f"{sign}{above}e2".replace("e2", "e0"), f"{sign}{above} \\times 10^{{0}}"]
    elif above > below:
        found += [f"{sign}{above // below}\\frac{{{above % below}}}{{{below}}}"]
        found += [f"{sign}{above // below} {above % below}/{below}"]
    if set(_primes(below)) <= {2, 5}:
        places = max(_primes(below).count(2), _primes(below).count(5))
        digits = f"{size.numerator * 10**places // size.denominator:0{places + 1}d}"
        if places:
            found += [f"{sign}{digits[:-places]}.{digits[-places:]}", f"{sign}{digits}e-{places}"]
        found += [f"{sign}{digits} \\times 10^{{-{places}}}"]
    return found


def _primes(number: int) -> list[int]:
    found, prime = [], 2
    while number > 1:
        while number % prime == 0:
            found.append(prime)
            number //= prime
        prime += 1
    return found


rationals = st.builds(Fraction, st.integers(-(10**6), 10**6), st.integers(1, 60))


@EXAMPLES
@given(value=rationals, data=st.data())
def test_every_spelling_of_a_number_is_that_number(value, data):
    one, other = (data.draw(st.sampled_from(spellings(value))) for _ in range(2))
    assert same(one, other), (one, other)


@EXAMPLES
@given(value=rationals, step=st.builds(Fraction, st.integers(1, 10), st.integers(1, 10**9)), data=st.data())
def test_no_spelling_of_another_number_is(value, step, data):
    one = data.draw(st.sampled_from(spellings(value)))
    other = data.draw(st.sampled_from(spellings(value + step)[:3]))
    assert not same(one, other), (one, other)


@EXAMPLES
@given(base=st.integers(2, 12), exponents=st.lists(st.integers(-400, 400), min_size=2, max_size=2, unique=True))
def test_powers_with_other_exponents_differ_however_small_they_are(base, exponents):
    one, other = exponents
    assert not same(f"{base}^{{{one}}}", f"{base}^{{{other}}}")
    assert same(f"{base}^{{{one}}}", f"\\frac{{{base}^{{{one + 3}}}}}{{{base**3}}}")


@pytest.mark.parametrize(("one", "other"), itertools.combinations([17, 100, 2003, 2004, 2006], 2))
def test_reciprocals_of_factorials_differ(one, other):
    assert not same(f"\\frac{{1}}{{{one}!}}", f"\\frac{{1}}{{{other}!}}")
    assert not same(f"\\frac{{1}}{{{one}!}}", "0")
    assert same(f"\\frac{{1}}{{{one}!}}", f"\\frac{{{one + 1}}}{{{one + 1}!}}")


@EXAMPLES
@given(radicand=st.integers(2, 400), factor=st.integers(2, 30), off=st.integers(1, 5))
def test_roots_are_compared_beyond_what_floats_show(radicand, factor, off):
    assume(math.isqrt(radicand) ** 2 != radicand)
    assert same(f"\\sqrt{{{radicand * factor**2}}}", f"{factor}\\sqrt{{{radicand}}}")
    assert not same(f"\\sqrt{{{radicand * 10**60 + off}}}", f"{10**30}\\sqrt{{{radicand}}}")
    assert not same(f"\\sqrt{{{radicand}}}+\\frac{{{off}}}{{10^{{40}}}}", f"\\sqrt{{{radicand}}}")


@EXAMPLES
@given(places=st.integers(6, 12), above=st.integers(1, 500), below=st.sampled_from([3, 7, 11, 13, 17, 19, 23]))
def test_a_long_decimal_is_a_fraction_if_it_is_its_rounding(places, above, below):
    value = Fraction(above, below)
    assume(value.denominator != 1 and value > Fraction(1, 10))
    cut = math.floor(value * 10**places)
    near = round(value * 10**places)
    for digits in (cut, near):
        assert same(f"\\frac{{{above}}}{{{below}}}", f"{digits // 10**places}.{digits % 10**places:0{places}d}")
    for digits in (cut - 1, near + 2):
        assert not same(f"\\frac{{{above}}}{{{below}}}", f"{digits // 10**places}.{digits % 10**places:0{places}d}")


@EXAMPLES
@given(
    low=st.integers(-50, 50), size=st.integers(1, 50), ends=st.sampled_from(["()", "(]", "[)", "[]"]), data=st.data()
)
def test_an_interval_is_its_inequality_and_its_set(low, size, ends, data):
    high = low + size
    less = {"(": "<", "[": "\\le", ")": "<", "]": "\\leq"}
    written = [
        f"{ends[0]}{low},{high}{ends[1]}",
        f"x \\in {ends[0]}{low}, {high}{ends[1]}",
        f"{low} {less[ends[0]]} x {less[ends[1]]} {high}",
        f"\\{{x \\mid {low} {less[ends[0]]} x {less[ends[1]]} {high}\\}}",
        f"\\{{ t \\in \\mathbb{{R}} : {low} {less[ends[0]]} t {less[ends[1]]} {high} \\}}",
    ]
    one, other = (data.draw(st.sampled_from(written)) for _ in range(2))
    assert same(one, other), (one, other)
    ends_of_another = data.draw(st.sampled_from([e for e in ("()", "(]", "[)", "[]") if e != ends]))
    assert not same(one, f"x \\in {ends_of_another[0]}{low},{high}{ends_of_another[1]}")
    assert not same(one, f"{ends[0]}{low},{high + 1}{ends[1]}")


@EXAMPLES
@given(values=st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), data=st.data())
def test_a_list_is_the_same_in_any_order_and_lacks_nothing(values, data):
    given_order = data.draw(st.permutations(values))
    joined = data.draw(st.sampled_from([", ", ",", " \\text{ and } ", " or ", "; "]))
    text = joined.join(map(str, given_order))
    reference = ", ".join(f"x = {value}" for value in values)
    assert same(", ".join(map(str, values)), text)
    assert same(reference, text) and same(f"\\{{{', '.join(map(str, values))}\\}}", text)
    assert not same(text, joined.join(map(str, given_order[1:])))
    assert not same(text, joined.join(map(str, [*given_order[1:], 1000])))
    if list(given_order) != values:
        assert not same(f"({', '.join(map(str, values))})", f"({', '.join(map(str, given_order))})")


@EXAMPLES
@given(value=st.integers(100, 10**6), bases=st.lists(st.integers(2, 9), min_size=2, max_size=2, unique=True))
def test_digits_in_another_base_are_another_number(value, bases):
    def digits(base):
        number, found = value, ""
        while number:
            number, digit = divmod(number, base)
            found = str(digit) + found
        return found

    one, other = bases
    assert same(f"{digits(one)}_{one}", f"{digits(other)}_{{{other}}}")
    assert same(f"{digits(one)}_{{{one}}}", digits(one))
    if all(int(digit) < other for digit in digits(one)):
        assert not same(f"{digits(one)}_{one}", f"{digits(one)}_{other}")


@EXAMPLES
@given(word=st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=9), data=st.data())
def test_letters_in_another_order_are_another_word(word, data):
    other = "".join(data.draw(st.permutations(word)))
    assert same(f"\\text{{{word}}}", f"\\text{{{other.capitalize()}}}") == (word == other)
    assert same(f"\\text{{{word}}}", other) == (word == other)


@EXAMPLES
@given(st.text(alphabet=r"\{}()[]^_=<>,;:|%$°.+-*/ 0123456789abexyπ√∞≤", max_size=40))
def test_no_text_makes_the_reading_raise(text):
    verdict = grade_answer(f"\\boxed{{{text}}}", "7", "math")
    assert verdict.status in ("ok", "no_answer")
    assert clean(clean(text)) == clean(clean(clean(text)))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {marker}') or 0",
        "open('{marker}','w').write('1') and 0",
        "\\operatorname{{__import__('os').system}}('touch {marker}')",
        "[open('{marker}','w') for x in (0,)][0]",
        "exec(\"open('{marker}','w')\")",
        "S(\"open('{marker}','w')\")",
    ],
)
@pytest.mark.parametrize("answer", ["0", "1", "\\{0\\}"])
def test_text_is_never_run(text, answer, tmp_path):
    marker = tmp_path / "marker"
    for response in ("\\boxed{" + text.format(marker=marker) + "}", "The answer is " + text.format(marker=marker)):
        for grader in ("math", "boxed", "boxed_reference"):
            grade_answer(response, answer, grader)
        assert not grade_answer(response, answer, "boxed").correct
    assert not marker.exists()


def test_numbers_too_long_to_write_out_cost_nothing():
    assert same("9^{9^9}", "9^{9^9}") and not same("9^{9^9}", "9^{9^8}")
    assert not same("10^{10^{10}}", "0") and not same("(10^9)!", "1")
    assert symbolic.rational(symbolic.expression("10^{10^{10}}")) is None


def test_a_response_that_the_comparison_fails_on_is_counted_and_not_called_wrong(monkeypatch):
    def broken(*_):
        raise TypeError("cannot compare")

    monkeypatch.setattr(symbolic, "same", broken)
    assert grade_answer(r"\boxed{\sqrt{3}+\sqrt{5}}", r"\sqrt{3}+\sqrt{7}", "boxed") == Grade(False, "error")

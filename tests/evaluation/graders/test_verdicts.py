import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.grading import Grade, extract_answer, extract_boxed, grade_answer


@pytest.mark.parametrize(
    ("response", "boxed"),
    [
        (r"so \boxed{42}.", ["42"]),
        (r"\boxed{1} is wrong, it is \boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"$\boxed{1}$ and $\boxed{2}$", ["1", "2"]),
        (r"\boxed {3}, \fbox{4}", ["3", "4"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{1} then \boxed{2", ["1"]),
        (r"\boxed{}", [""]),
        ("42", []),
    ],
)
def test_extract_boxed(response, boxed):
    assert extract_boxed(response) == boxed


def test_extract_answer_prefers_the_box():
    assert extract_answer(r"The answer is 3. \boxed{4}") == "4"
    assert extract_answer("The answer is 3.\nThe answer is: 5.") == "5"
    assert extract_answer("Answer: blue") == "blue"
    assert extract_answer("I do not know") is None


@pytest.mark.parametrize(
    ("response", "answer", "grader", "correct"),
    [
        (r"\boxed{42}", "42", "boxed", True),
        (r"\boxed{43}", "42", "boxed", False),
        (r"\boxed{042}", "42", "boxed", True),
        (r"\boxed{\frac{1}{2}}", "0.5", "boxed", True),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", "boxed", True),
        (r"\boxed{x^2+2x}", "(x+1)^2", "boxed", False),
        (r"\boxed{2, 1}", r"\{1,2\}", "boxed", True),
        (r"$\boxed{1}$ and $\boxed{2}$", "1,2", "boxed", True),
        (r"\boxed{1,234}", "1234", "boxed", True),
        (r"\boxed{3\text{ cm}}", "3", "boxed", True),
        (r"\boxed{x = 5}", "5", "boxed", True),
        (r"\boxed{50%}", r"50\%", "boxed", True),
        (r"\boxed{blue}", r"\text{blue}", "boxed", True),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", "boxed", True),
        ("The answer is 1/2", r"\frac{1}{2}", "math", True),
        (r"The answer is $\frac12$", "1/2", "math", True),
        (r"The answer is 7. \boxed{8}", "7", "math", False),
        (r"\boxed{New  York.}", "new york", "exact", True),
        ("Answer: no", "yes", "exact", False),
        ("the dose is 1,250.0 mg", "1250", "numeric", True),
        (r"\boxed{5.4}", "5.2", "numeric", False),
        (r"\boxed{5.4}", "5.2", "numeric:0.05", True),
        (r"\boxed{-3e-2}", "-0.03", "numeric", True),
        ("Due on 03/04/2020", "2020-03-04", "date", True),
        ("Due on 03/04/2020", "2020-04-03", "date", False),
        ("Answer: March 4th, 2020", "03/04/2020", "date", True),
        ("It is 4 Mar 2020", "03/04/2020", "date", True),
        (r"\boxed{17 weeks, 4 days}", "('17 weeks', '4 days')", "date", True),
        ("The answer is (C).", "C", "choice", True),
        (r"\boxed{\text{(B)}}", "(B)", "choice", True),
        ("A is tempting, but B", "A", "choice", False),
    ],
)
def test_verdicts(response, answer, grader, correct):
    assert grade_answer(response, answer, grader) == Grade(correct, "ok")


@pytest.mark.parametrize(
    ("response", "answer", "grader"),
    [
        ("The answer is 42", "42", "boxed"),
        ("", "42", "math"),
        ("no idea", "42", "math"),
        ("", "yes", "exact"),
        ("nothing", "4", "numeric"),
        ("soon, or on 99/99/2020", "2020-03-04", "date"),
        ("none of these", "C", "choice"),
    ],
)
def test_a_response_without_an_answer_is_told_apart_from_a_wrong_one(response, answer, grader):
    assert grade_answer(response, answer, grader) == Grade(False, "no_answer")


@pytest.mark.parametrize(
    ("answer", "grader"),
    [("", "math"), ("two", "numeric"), ("1 or 2", "numeric"), ("tomorrow", "date"), ("Paris", "choice")],
)
def test_a_reference_the_grader_cannot_read_is_an_error_of_the_data(answer, grader):
    with pytest.raises(ValueError, match="answer"):
        grade_answer(r"\boxed{\frac{1}{3}}", answer, grader)


@pytest.mark.parametrize("grader", ["maths", "", "math:0.1", "numeric:tiny"])
def test_an_unknown_grader_is_refused(grader):
    with pytest.raises(ValueError):
        grade_answer("1", "1", grader)


def numbers():
    """Numerals as models and references write them."""
    integer = st.integers(-(10**6), 10**6)
    small = st.integers(-20, 20)
    fraction = st.tuples(
        st.sampled_from(["", "-"]), st.sampled_from("dt") | st.just(""), small.map(abs), small.map(abs)
    )
    return st.one_of(
        integer.map(str),
        integer.map("{:,}".format),
        integer.map("{:+d}".format),
        small.map("{:03d}".format),
        st.tuples(small, st.integers(0, 99)).map(lambda pair: f"{pair[0]}.{pair[1]}"),
        fraction.map(lambda f: f"{f[0]}\\{f[1]}frac{{{f[2]}}}{{{f[3] + 1}}}"),
    )


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(found=numbers(), answer=numbers(), same=st.booleans())
def test_plain_numbers_get_math_verifys_verdict(found, answer, same):
    answer = found if same else answer
    verdict = grade_answer(rf"\boxed{{{found}}}", answer, "boxed")
    assert verdict == grade_answer(rf"\boxed{{{found}}}", answer, "boxed_reference")


@pytest.mark.parametrize(
    ("response", "answer", "ours", "math_verify"),
    [
        (r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2004!}", False, True),
        (r"\boxed{4.5 \times 10^{33}}", "4.5e33", True, False),
        (r"\boxed{2516_7}", "2516_8", False, True),
        (r"\boxed{\text{seat}}", r"\text{east}", False, False),
        (r"\boxed{x^2-12=0}", "0", False, True),
        (r"\boxed{0 \le x < 1}", "[0,1)", True, False),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{3}", True, True),
        (r"\boxed{2}", "3", False, False),
    ],
)
def test_the_reference_is_math_verify_alone(response, answer, ours, math_verify):
    assert grade_answer(response, answer, "boxed") == Grade(ours, "ok")
    assert grade_answer(response, answer, "boxed_reference") == Grade(math_verify, "ok")


def test_the_reference_wants_a_box_and_a_reference_answer():
    assert grade_answer("The answer is 2", "2", "boxed_reference") == Grade(False, "no_answer")
    with pytest.raises(ValueError, match="answer"):
        grade_answer(r"\boxed{2}", "", "boxed_reference")

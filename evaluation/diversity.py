"""How different the responses to one problem are: distinct-n and self-BLEU."""

from collections.abc import Sequence
from functools import lru_cache

# Self-BLEU is quadratic in the samples of a problem; the first few tell methods apart.
SELF_BLEU_SAMPLES = 8


def distinct_n(responses: Sequence[str], n: int) -> float | None:
    """Distinct n-grams over all n-grams of the responses to one problem, in [0, 1] (Li et al. 2016, arXiv:1510.03055).

    Tokens are those of sacrebleu's 13a tokenizer. None where no response is as long as n.
    """
    grams: list[tuple[str, ...]] = []
    for response in responses:
        tokens = _tokens(response)
        grams += [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(responses: Sequence[str]) -> float | None:
    """Mean sentence BLEU of each response against the others, in [0, 100] (Zhu et al. 2018, arXiv:1802.01886).

    sacrebleu with effective order and its default smoothing, over the first `SELF_BLEU_SAMPLES` responses to one
    problem; 100 means that all are equal. None for fewer than two responses.
    """
    from sacrebleu import sentence_bleu

    responses = list(responses[:SELF_BLEU_SAMPLES])
    if len(responses) < 2:
        return None
    scores = [
        sentence_bleu(response, responses[:place] + responses[place + 1 :], use_effective_order=True).score
        for place, response in enumerate(responses)
    ]
    return sum(scores) / len(scores)


@lru_cache(maxsize=1)
def _tokenizer():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _tokens(text: str) -> list[str]:
    return _tokenizer()(text).split()


def of_problem(responses: Sequence[str]) -> dict[str, float | None]:
    """All diversity figures of one problem's responses, by metric name."""
    return {
        "distinct_1": distinct_n(responses, 1),
        "distinct_2": distinct_n(responses, 2),
        "self_bleu": self_bleu(responses),
    }

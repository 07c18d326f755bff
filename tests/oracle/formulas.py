"""Every objective and ablation as a plain formula of one position, written from the papers and nothing else.

Slow on purpose: Python loops over positions, whole vocabularies, autograd for the gradient. Nothing is imported from
the package under test. Run on float64 logits this is the oracle; run on float32 or bfloat16 logits it is the naive
implementation of that precision. Setting names and defaults are those of the specification.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW = 30  # of N1: LP-SFT C.1


@dataclass
class Position:
    """One position. log_p, log_q[source]: (V,), the whole vocabulary; ids[source]: cached words, likeliest first."""

    log_p: Tensor
    y: int
    log_q: dict[str, Tensor]
    ids: dict[str, list[int]]
    n1: dict[str, float]
    supervised: bool
    sequence: int
    critical: float

    def log_d(self, source: str) -> Tensor:
        """The distribution that a weight is computed from: the student, detached, or a frozen reference."""
        return self.log_p.detach() if source == "online" else self.log_q[source]


def positions(logits, labels, mask, lengths, reference_logits, support_ids, critical) -> list[Position]:
    """A packed batch as a list of positions; all logits (N, V), support_ids: source -> (N, K)."""
    sequence = [index for index, length in enumerate(lengths) for _ in range(int(length))]
    found = []
    for t in range(len(labels)):
        log_q64 = {s: z[t].double().log_softmax(-1) for s, z in reference_logits.items()}
        found.append(
            Position(
                log_p=logits[t].log_softmax(-1),
                y=int(labels[t]),
                log_q={s: log_q.to(logits.dtype) for s, log_q in log_q64.items()},
                ids={s: ids[t].tolist() for s, ids in support_ids.items()},
                n1={s: effective_support(log_q.exp())[0] for s, log_q in log_q64.items()},
                supervised=bool(mask[t]),
                sequence=sequence[t],
                critical=float(critical[t]),
            )
        )
    return found


def losses(name: str, batch: list[Position], **settings) -> Tensor:
    """(N,) losses of objective `name`; 0 where a position is not supervised."""
    zero = 0 * batch[0].log_p[:0].sum()
    return torch.stack([LOSSES[name](t, batch, **settings) if t.supervised else zero for t in batch])


def normalizer(name: str, batch: list[Position], **settings) -> float:
    """What the sum over the global batch is divided by."""
    supervised = [t for t in batch if t.supervised]
    if name == "talr" and settings.get("normalize"):
        return float(sum(talr(t, batch, **settings) for t in supervised))
    if settings.get("normalizer") == "kept":
        if name == "beyond_log":
            rule = {"threshold": settings["threshold"], "keep": settings.get("keep", "above")}
            return max(sum(is_kept(t, **rule) for t in supervised), 1)  # of none the sum is 0 too
        return sum(int(token_selection(t, batch, **settings)) for t in supervised)
    return len(supervised)


# statistics of one distribution


def entropy(log_d: Tensor) -> Tensor:
    """Shannon entropy, of a distribution that may have zeros."""
    return -sum_of(d * log for d, log in zip(log_d.exp(), log_d, strict=True) if d > 0)


def effective_support(q: Tensor) -> tuple[float, float]:
    """N1 and N2 of the WINDOW most probable words, renormalised (LP-SFT eq. 2-4)."""
    top = sorted(q.tolist(), reverse=True)[:WINDOW]
    top = [x / sum(top) for x in top]
    return math.exp(-sum(x * math.log(x) for x in top if x > 0)), 1 / sum(x * x for x in top)


def top_words(log_d: Tensor, k: int) -> Tensor:
    """The log-probabilities of the k most probable words, or of all if the vocabulary is smaller."""
    return log_d.sort(descending=True).values[:k]


def sum_of(terms):
    return torch.stack(list(terms)).sum()


def lower_median(numbers: list) -> float:
    return sorted(float(x) for x in numbers)[(len(numbers) - 1) // 2]


def in_sequence(t: Position, batch: list[Position]) -> list[Position]:
    return [other for other in batch if other.supervised and other.sequence == t.sequence]


def mean_losses(batch: list[Position], source: str) -> list[Tensor]:
    """Mean -log d_y of every sequence that has supervised positions."""
    found = []
    for sequence in sorted({t.sequence for t in batch if t.supervised}):
        own = [t for t in batch if t.supervised and t.sequence == sequence]
        found.append(sum_of(-t.log_d(source)[t.y] for t in own) / len(own))
    return found


# token weights: PriFT Table 1, TARGET Table 4


def sft(t, batch):
    return torch.ones_like(t.log_p[0])


def dft(t, batch, source="online"):
    return t.log_d(source)[t.y].exp()


def profit(t, batch, source="online", threshold=0.1):
    return (t.log_d(source)[t.y].exp() >= threshold).to(t.log_p.dtype)


def talr(t, batch, source="online", temperature=None, w_min=0.01, normalize=False):
    """TALR Algorithm 1 with D.2's temperature."""
    if temperature is None:
        temperature = lower_median(mean_losses(batch, source))
    return (t.log_d(source)[t.y] / temperature).exp().clamp(min=w_min)


def eaft(t, batch, source="online", top_k=20, exponent=1.0, divide_by=None):
    top = top_words(t.log_d(source), top_k)
    renormalised = top - top.exp().sum().log()
    return (entropy(renormalised) / (math.log(top_k) if divide_by is None else divide_by)) ** exponent


def idft(t, batch, source="online", bound=1.0, variant="paper"):
    log_d = t.log_d(source)
    phi = log_d[t.y] + entropy(log_d)
    if variant == "repo":
        return (log_d[t.y] * (-phi).exp().clamp(0.1, 2)).exp()
    return (log_d[t.y] * (-phi.clamp(-bound, bound)).exp()).exp()


def prift_prob(t, batch, source="base"):
    return t.log_d(source)[t.y].exp()


def prift_mass(t, batch, source="base", threshold=0.5, variant="paper"):
    """PriFT eq. 3; repo: words tied with y, but not y itself, are left out."""
    d = t.log_d(source).exp()
    u = sum_of(d[v] for v in range(len(d)) if d[v] < d[t.y] or v == t.y or (variant == "paper" and d[v] == d[t.y]))
    if d[t.y] == d.max() and (variant == "paper" or (d == d.max()).sum() == 1):
        u = torch.ones_like(u)
    return (u >= threshold).to(t.log_p.dtype)


def token_selection(t, batch, source="online", fraction=0.5, statistic="prob", order="top", normalizer="supervised"):
    def score(other):
        log_d = other.log_d(source)
        return float(log_d[other.y] if statistic == "prob" else entropy(log_d))

    ranked = sorted((score(other) for other in batch if other.supervised), reverse=order == "top")
    last = ranked[math.ceil(fraction * len(ranked)) - 1]
    return torch.ones_like(t.log_p[0]) * (score(t) >= last if order == "top" else score(t) <= last)


def critical_token(t, batch):
    return torch.full_like(t.log_p[0], t.critical)


def iw_sft(t, batch, source="base", numerator="online", variant="paper"):
    """TARGET Table 4: the ratio of the probabilities of a whole trajectory; log w is bounded by 70."""
    log_ratio = [other.log_d(numerator)[other.y] - other.log_d(source)[other.y] for other in in_sequence(t, batch)]
    if variant == "repo_token":
        return (t.log_d(numerator)[t.y] - t.log_d(source)[t.y]).clamp(max=70).exp().clamp(0.2, 1.8)
    if variant == "repo":
        return (sum_of(log_ratio) / len(log_ratio)).clamp(max=70).exp().clamp(max=16)
    return sum_of(log_ratio).clamp(max=70).exp()


def flow(t, batch, source="base", temperature=None, mean_weight=None, median="lower"):
    """exp(-mean loss / temperature) of the sequence under the base, of mean 1 over the sequences of the data set."""
    of_base = mean_losses(batch, source)
    if temperature is None:
        numbers = [float(loss) for loss in of_base]
        temperature = statistics.median(numbers) if median == "mean" else lower_median(numbers)
    own = in_sequence(t, batch)
    weight = (-sum_of(-other.log_d(source)[other.y] for other in own) / len(own) / temperature).exp()
    if mean_weight is None:
        mean_weight = sum_of((-loss / temperature).exp() for loss in of_base) / len(of_base)
    return weight / mean_weight


WEIGHTS = {
    "sft": sft,
    "dft": dft,
    "profit": profit,
    "talr": talr,
    "eaft": eaft,
    "idft": idft,
    "prift_prob": prift_prob,
    "prift_mass": prift_mass,
    "token_selection": token_selection,
    "critical_token": critical_token,
    "iw_sft": iw_sft,
    "flow": flow,
}


def weighted(rule):
    return lambda t, batch, **settings: -rule(t, batch, **settings).detach() * t.log_p[t.y]


# losses through p_y


def is_kept(t, threshold, keep):
    p_y = t.log_p[t.y].detach().exp()
    return bool(p_y >= threshold) if keep == "above" else bool(p_y < threshold)


def beyond_log(t, batch, exponent=1.0, threshold=None, keep="above", normalizer="supervised"):
    """(1 - p_y^a) / a: TARGET Table 4."""
    kept = threshold is None or is_kept(t, threshold, keep)
    if exponent == 0:
        return -kept * t.log_p[t.y]
    return kept * (1 - (exponent * t.log_p[t.y]).exp()) / exponent


def sed_sft(
    t, batch, weight=1.0, top_k=2, fraction=0.7, threshold=None, threshold_top_k=None, positions="all", mask=True
):
    """SED-SFT eq. 1; the threshold is the (1 - r)-quantile of the base's top-k mass, interpolated linearly."""
    if threshold is None:
        k = top_k if threshold_top_k is None else threshold_top_k
        sample = [other for other in batch if positions == "all" or other.supervised]
        mass = sorted(float(top_words(other.log_q["base"].double(), k).exp().sum()) for other in sample)
        rank = (1 - fraction) * (len(mass) - 1)
        below = math.floor(rank)
        above = min(below + 1, len(mass) - 1)
        threshold = mass[below] + (rank - below) * (mass[above] - mass[below])
    room = top_words(t.log_p.detach(), top_k).exp().sum() < threshold
    p_y = t.log_p[t.y].exp()
    return -t.log_p[t.y] + weight * float(room or not mask) * (p_y - 0.5) ** 2


def psft(t, batch, clip=0.2, inner_updates=4):
    """-min(r, clip(r, 1 - e, 1 + e)): TARGET Table 4."""
    old = t.log_q["old"] if inner_updates else t.log_q["base"]
    log_r = t.log_p[t.y] - old[t.y]
    if log_r > 1:  # r itself may overflow; it is clipped here for any e < e^1 - 1
        return 0 * log_r - (1 + clip)
    r = log_r.exp()
    return -torch.minimum(r, r.clamp(1 - clip, 1 + clip))


# residuals


def cross_entropy(target: Tensor, log_p: Tensor) -> Tensor:
    return -sum_of(x * log for x, log in zip(target, log_p, strict=True) if x != 0)


def one_hot(t: Position) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(t.y), len(t.log_p)).to(t.log_p.dtype)


def on_words(log_weights: Tensor, words: list[int], size: int) -> Tensor:
    """The distribution over `size` words proportional to exp(log_weights) on `words`, zero elsewhere."""
    shape = (log_weights - log_weights.max()).exp()
    found = torch.zeros(size, dtype=log_weights.dtype)
    found[words] = shape / shape.sum()
    return found


def residual_distribution(t, form, source="teacher", top_k=None, exponent=0.5, temperature=0.7):
    """A detached distribution over the vocabulary: TARGET sec. 6 and Table 5."""
    log_p, size = t.log_p.detach(), len(t.log_p)
    if form == "uniform":
        return torch.full((size,), 1 / size, dtype=log_p.dtype)
    if form == "self":
        return log_p.exp()
    if form == "sharpened":
        return (log_p / temperature).softmax(-1)
    log_q = t.log_q[source]
    if form == "full":
        return log_q.exp()
    words = t.ids[source][:top_k]
    if form == "truncated":
        return on_words(log_q[words], words, size)
    power = 1 - exponent if form == "geometric" else 1
    of_student = power * log_p[words] if power else torch.zeros(len(words), dtype=log_p.dtype)
    return on_words(of_student + exponent * log_q[words], words, size)


def label_smoothing(t, batch, weight=0.1):
    return -((1 - weight) * t.log_p[t.y] + weight / len(t.log_p) * t.log_p.sum())


def kd(t, batch, source="teacher", weight=0.8, top_k=None):
    """TARGET 7.1 and Table 6: the teacher on its cached words, renormalised."""
    soft = cross_entropy(residual_distribution(t, "truncated", source=source, top_k=top_k), t.log_p)
    return weight * soft - (1 - weight) * t.log_p[t.y]


def kd_decomposed(t, batch, source="teacher", weight=0.5, estimator="full", top_k=None):
    """PriFT D.1: the label's term and `weight` times all other terms of the cross-entropy."""
    log_q = t.log_q[source]
    if weight == 0:
        return -log_q[t.y].exp() * t.log_p[t.y]
    words = range(len(log_q)) if estimator == "full" else t.ids[source][:top_k]
    others = [log_q[v].exp() * t.log_p[v] for v in words if v != t.y]
    return -log_q[t.y].exp() * t.log_p[t.y] - weight * (sum_of(others) if others else 0)


def kl(t, source, estimator="full", top_k=None):
    """KL(q || p) over the vocabulary, or over the cached words and one bucket of all others."""
    log_q, log_p = t.log_q[source], t.log_p
    words = list(range(len(log_q))) if estimator == "full" else t.ids[source][:top_k]
    rest = [v for v in range(len(log_q)) if v not in words]
    terms = [(log_q[v], log_p[v]) for v in words]
    if rest:
        terms.append((log_q[rest].logsumexp(-1), log_p[rest].logsumexp(-1)))
    return sum_of(a.exp() * (a - b) for a, b in terms if a.exp() > 0)


def sft_kl(t, batch, source="base", weight=0.1, estimator="full", top_k=None):
    return -t.log_p[t.y] + weight * kl(t, source, estimator, top_k)


def asft(t, batch, source="base", weight=0.05, estimator="full", top_k=None):
    return -t.log_p[t.y].detach().exp() * t.log_p[t.y] + weight * kl(t, source, estimator, top_k)


def sft_k3(t, batch, source="base", weight=0.001, max_log_ratio=60.0):
    """TALR C.4; r = q_y / p_y is continued linearly in log r beyond max_log_ratio, where it would overflow."""
    log_r = t.log_q[source][t.y] - t.log_p[t.y]
    r = log_r.exp() if log_r <= max_log_ratio else math.exp(max_log_ratio) * (1 + log_r - max_log_ratio)
    return -t.log_p[t.y] + weight * (r - 1 - log_r)


def gem(t, batch, temperature=0.7, weight=1.0, variant="linear"):
    """TARGET Table 4 and B.3. logsigmoid: every word's term is multiplied by a detached sigmoid(0.01 (z_v - z_y))."""
    log_p = t.log_p.detach()
    w = (log_p / temperature).softmax(-1)
    if variant == "logsigmoid":
        w = w * (0.01 * (log_p - log_p[t.y])).sigmoid()
        return -w.sum() * t.log_p[t.y] - weight * cross_entropy(w, t.log_p)
    return -t.log_p[t.y] - weight * cross_entropy(w, t.log_p)


def preservation_set(t, source="base", top_k=10, schedule="n1", rounding="ceil", remove_label=True, following="any"):
    """LP-SFT eq. 13-15, from the cached order of the base's words. Without label removal eq. 15 reads S for S'."""
    n1 = t.n1[source]
    k = top_k if schedule == "fixed" else min(math.ceil(n1) if rounding == "ceil" else round(n1), top_k)
    chosen = t.ids[source][:k]
    rest = [v for v in chosen if v != t.y or not remove_label]
    if len(rest) == 1:
        within = range(len(t.log_p)) if following == "any" else t.ids[source][:top_k]
        outside = [v for v in within if v not in chosen and v != t.y]
        rest += [max(outside, key=lambda v: float(t.log_q[source][v]))] if outside else []
    return [] if following == "top_k" and len(rest) == 1 else rest


def lp_sft(
    t,
    batch,
    source="base",
    weight=1.0,
    top_k=10,
    schedule="n1",
    remove_label=True,
    normalize=True,
    scope="local",
    rounding="ceil",
    divergence="kl",
    following="any",
):
    """LP-SFT eq. 16-18 and the ablations of Table 17."""
    if scope == "full":
        words = [v for v in range(len(t.log_p)) if v != t.y or not remove_label]
    else:
        words = preservation_set(t, source, top_k, schedule, rounding, remove_label, following)
    if not words:
        return -t.log_p[t.y]
    log_q, log_p = t.log_q[source][words], t.log_p[words]
    if normalize:
        log_q, log_p = log_q - log_q.logsumexp(-1), log_p - log_p.logsumexp(-1)
    pairs = zip(log_q, log_p, strict=True)
    term = sum_of(a.exp() * ((a if divergence == "kl" else 0) - b) if a.exp() > 0 else 0 * b for a, b in pairs)
    return -t.log_p[t.y] + weight * term


def target_sft(
    t, batch, source="teacher", exponent=0.5, top_k=None, residual_weight="adaptive", residual_form="geometric"
):
    """TARGET eq. 7-8; a constant weight: the ablation of Table 6."""
    g = t.log_p[t.y].detach().exp()
    b = 1 - g if residual_weight == "adaptive" else residual_weight
    guided = residual_distribution(t, residual_form, source=source, top_k=top_k, exponent=exponent)
    return cross_entropy(g * one_hot(t) + b * guided, t.log_p)


def q_target(
    t,
    batch,
    rule="dft",
    rule_settings=None,
    residual="geometric",
    residual_settings=None,
    residual_weight="adaptive",
    residual_rule=None,
    residual_rule_settings=None,
):
    """a_t CE(e_y, p) + b_t CE(R_t, p): TARGET eq. 4-5."""
    a = WEIGHTS[rule](t, batch, **(rule_settings or {})).detach()
    if residual_rule is not None:
        b = WEIGHTS[residual_rule](t, batch, **(residual_rule_settings or {})).detach()
        b = b if residual_weight == "adaptive" else b * residual_weight
    else:
        b = 1 - a if residual_weight == "adaptive" else residual_weight
    target = residual_distribution(t, residual, **(residual_settings or {}))
    return -a * t.log_p[t.y] + b * cross_entropy(target, t.log_p)


LOSSES = {
    **{name: weighted(rule) for name, rule in WEIGHTS.items()},
    "beyond_log": beyond_log,
    "sed_sft": sed_sft,
    "psft": psft,
    "label_smoothing": label_smoothing,
    "kd": kd,
    "distill": kd,
    "kd_decomposed": kd_decomposed,
    "sft_kl": sft_kl,
    "sft_k3": sft_k3,
    "asft": asft,
    "gem": gem,
    "lp_sft": lp_sft,
    "target_sft": target_sft,
    "q_target": q_target,
}

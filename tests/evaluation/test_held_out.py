import numpy as np
import pytest

from evaluation.generation import Prompter
from evaluation.held_out import ENTROPY_EDGES, HeldOut, encode, forward, plausible_entropy, read, write
from evaluation.token_table import TOP, TokenWriter, aligned, batches, contexts, texts

CHAT = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2 of course"}]


def test_sums_equal_float64_formulas_over_the_response_only(model_directory):
    import torch
    from transformers import AutoModelForCausalLM

    model, base = model_directory(tied=True, seed=1), model_directory(tied=True, seed=0)
    ids, start = encode(Prompter(model), CHAT, 256)
    assert Prompter(model).tokenizer.decode(ids[start:]) == "2 of course<|im_end|>"
    calls = []
    found = forward(model, base, [(ids, start)], dtype="float32", device="cpu", progress=calls.append)

    def log_probabilities(path):
        network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        with torch.no_grad():
            return network(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1).numpy()

    p, q = log_probabilities(model), log_probabilities(base)
    entropies = -(np.exp(p) * p).sum(-1)
    assert found.entropy[0] == pytest.approx(entropies.sum(), rel=1e-5)
    assert found.loss[0] == pytest.approx(-p[np.arange(len(p)), ids[start:]].sum(), rel=1e-5)
    assert found.kl[0] == pytest.approx((np.exp(q) * (q - p)).sum(), rel=1e-4)
    labels = ids[start:]
    rows = np.arange(len(labels))
    assert found.drift[0] == pytest.approx(np.abs(np.exp(p) - np.exp(q))[rows, labels].sum(), rel=1e-4)
    plausible = 0.0
    for ours, theirs in zip(np.exp(p), np.exp(q), strict=True):
        count = min(30, int(np.ceil(np.exp(-(theirs * np.log(theirs)).sum()))))
        kept = ours[np.argsort(-theirs)[:count]] / ours[np.argsort(-theirs)[:count]].sum()
        plausible -= (kept * np.log(kept)).sum()
    assert found.plausible[0] == pytest.approx(plausible, rel=1e-4)
    assert found.tokens[0] == len(ids) - start and calls == [1]
    assert found.histogram[0].tolist() == np.histogram(entropies, bins=ENTROPY_EDGES)[0].tolist()


def test_the_entropy_of_plausible_tokens_is_that_of_the_bases_choices():
    import torch

    q = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).clamp(min=1e-30)
    p = torch.tensor([[0.1, 0.1, 0.8, 0.0], [0.25, 0.25, 0.25, 0.25]]).clamp(min=1e-30)
    entropy = -(q * q.log()).sum(-1) - 1e-6  # two choices, and one
    assert plausible_entropy(p.log(), q.log(), entropy).tolist() == pytest.approx([np.log(2), 0.0], abs=1e-6)


def test_a_model_is_at_distance_zero_from_itself(model_directory):
    model = model_directory(tied=True, seed=0)
    chat = encode(Prompter(model), CHAT, 256)
    found = forward(model, model, [chat], dtype="float32", device="cpu", progress=lambda _: None)
    assert found.kl[0] == 0.0
    assert forward(model, None, [chat], dtype="float32", device="cpu", progress=lambda _: None).kl is None


def test_chats_that_cannot_be_measured(model_directory):
    prompter = Prompter(model_directory(tied=True, seed=0))
    assert encode(prompter, CHAT, 8) is None
    with pytest.raises(ValueError, match="assistant"):
        encode(prompter, CHAT[:1], 256)


def test_sums_are_written_and_read_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    histogram = rng.integers(0, 9, size=(3, len(ENTROPY_EDGES) - 1))
    tokens = histogram.sum(axis=1).astype(np.float64)
    for kl in (rng.random(3), None):
        found = HeldOut(rng.random(3), rng.random(3), kl, tokens, histogram, rng.random(3), kl)
        write(tmp_path / "held_out.parquet", found, [True, False, True, True])
        again, too_long = read(tmp_path / "held_out.parquet")
        assert too_long == 1 and (again.kl is None) == (kl is None)
        for name in ("entropy", "loss", "tokens", "histogram", "plausible") + (() if kl is None else ("kl", "drift")):
            assert np.array_equal(getattr(again, name), getattr(found, name))
            assert getattr(again, name).dtype == getattr(found, name).dtype


def test_every_response_token_leaves_a_row(tmp_path, model_directory):
    import torch
    from transformers import AutoModelForCausalLM

    model, base = model_directory(tied=True, seed=1), model_directory(tied=True, seed=0)
    prompter = Prompter(model)
    chats = [encode(prompter, [CHAT[0], {"role": "assistant", "content": text}], 256) for text in ("2 of course", "3")]
    with TokenWriter(tmp_path, lambda one: prompter.tokenizer.decode([one])) as tokens:
        found = forward(
            model, base, chats, dtype="float32", device="cpu", progress=lambda _: None, tokens_to=tokens, places=[4, 9]
        )
    names = ("chat", "position", "token", "log_p", "rank", "mass", "entropy", "n1", "n2", "kl", "top_ids", "top_log_p")
    (rows,) = batches(tmp_path, names)
    p, q = (
        [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)(torch.tensor([ids])).logits[0].detach()
         for ids, _ in chats]
        for path in (model, base)
    )  # fmt: skip
    log_p, log_q = (
        torch.cat([z[start - 1 : -1] for z, (_, start) in zip(of, chats, strict=True)]).log_softmax(-1).numpy()
        for of in (p, q)
    )
    labels = np.concatenate([ids[start:] for ids, start in chats])
    own = log_p[np.arange(len(labels)), labels]
    assert rows["token"].tolist() == labels.tolist() and rows["log_p"] == pytest.approx(own, abs=1e-5)
    lengths = [len(ids) - start for ids, start in chats]
    assert rows["chat"].tolist() == [4] * lengths[0] + [9] * lengths[1]
    assert rows["position"].tolist() == [at for ids, start in chats for at in range(start, len(ids))]
    assert rows["rank"].tolist() == (1 + (log_p > own[:, None]).sum(-1)).tolist()
    mass = np.where(log_p <= own[:, None], np.exp(log_p), 0).sum(-1)
    assert rows["mass"] == pytest.approx(np.where(rows["rank"] == 1, 1, mass), abs=1e-5)
    assert rows["entropy"] == pytest.approx(-(np.exp(log_p) * log_p).sum(-1), rel=1e-5)
    assert rows["kl"] == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum(-1), rel=1e-3, abs=1e-6)
    window = np.sort(np.exp(log_p), axis=-1)[:, ::-1][:, :30]
    window /= window.sum(-1, keepdims=True)
    assert rows["n1"] == pytest.approx(np.exp(-(window * np.log(window)).sum(-1)), rel=1e-5)
    assert rows["n2"] == pytest.approx(1 / (window**2).sum(-1), rel=1e-5)
    assert rows["top_log_p"] == pytest.approx(np.sort(log_p, axis=-1)[:, ::-1][:, :TOP], abs=1e-5)
    assert np.take_along_axis(log_p, rows["top_ids"].astype(int), 1) == pytest.approx(rows["top_log_p"], abs=1e-5)
    assert found.entropy.sum() == pytest.approx(rows["entropy"].sum(), rel=1e-5)
    assert texts(tmp_path)[int(labels[0])] == prompter.tokenizer.decode([int(labels[0])])
    first = chats[0][1]
    before, token, after = contexts(tmp_path, [(4, first + 1)])[4, first + 1]
    assert before + token + after == "".join(texts(tmp_path)[one] for one in labels[:6].tolist())
    assert [len(side) for side in aligned([tmp_path, tmp_path], ("log_p",))] == [2]

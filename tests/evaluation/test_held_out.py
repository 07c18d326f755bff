import numpy as np
import pytest

from evaluation.generation import Prompter
from evaluation.held_out import ENTROPY_EDGES, HeldOut, encode, forward, read, write

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
    assert found.tokens[0] == len(ids) - start and calls == [1]
    assert found.histogram[0].tolist() == np.histogram(entropies, bins=ENTROPY_EDGES)[0].tolist()


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
        found = HeldOut(rng.random(3), rng.random(3), kl, tokens, histogram)
        write(tmp_path / "held_out.parquet", found, [True, False, True, True])
        again, too_long = read(tmp_path / "held_out.parquet")
        assert too_long == 1 and (again.kl is None) == (kl is None)
        for name in ("entropy", "loss", "tokens", "histogram") + (() if kl is None else ("kl",)):
            assert np.array_equal(getattr(again, name), getattr(found, name))
            assert getattr(again, name).dtype == getattr(found, name).dtype

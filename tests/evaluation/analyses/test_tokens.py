"""The tokens page: planted movers, exact weights and gradients, and what a browser makes of it."""

import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

import sft_objectives
from common.errors import ConfigError
from evaluation.analyses._stored import weight_and_gradient
from evaluation.token_table import TOP, TokenWriter, statistics

from .planted import data, run, sentence, table, tokens_of, write_tokens

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
VOCABULARY = 24
EXACT = (
    "sft",
    "dft",
    "profit",
    "talr",
    "eaft",
    "idft",
    "prift_prob",
    "prift_mass",
    "token_selection",
    "iw_sft",
    "flow",
)
EXACT += ("beyond_log", "sed_sft", "sft_k3", "lp_sft")
UNKNOWN = {
    "gem": "whole vocabulary",
    "kd": "teacher",
    "critical_token": "critical",
    "psft": "old",
    "sft_kl": "vocabulary",
}


def rows_of(logits, labels):
    """Columns of a token table from (n, V) logits, chats of 10 tokens."""
    log_p = torch.from_numpy(logits).log_softmax(-1)
    found = statistics(log_p.float(), torch.from_numpy(labels))
    found["entropy"] = torch.special.entr(log_p.exp()).sum(-1).float()
    places = {"chat": np.arange(len(labels)) // 10, "position": 3 + np.arange(len(labels)) % 10, "token": labels}
    return {name: values.numpy() for name, values in found.items()} | places


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    base = 3 * rng.standard_normal((60, VOCABULARY))
    student = base + 0.7 * rng.standard_normal(base.shape)
    labels = np.where(rng.random(60) < 0.8, base.argmax(-1), rng.integers(0, VOCABULARY, 60))
    return {"base": base, "student": student}, labels


@pytest.mark.parametrize("name", EXACT)
def test_weights_and_gradients_from_what_is_kept_are_those_of_the_loss(world, name):
    logits, labels = world
    settings = {"threshold": 0.9} if name == "sed_sft" else {}
    rows = {source: rows_of(z, labels) for source, z in logits.items()}
    objective = {"name": name, **settings}
    weight, gradient, why = weight_and_gradient(objective, rows["student"], {"base": rows["base"]})
    leaf, target = torch.from_numpy(logits["student"]).requires_grad_(), torch.from_numpy(labels)
    losses = sft_objectives.token_losses(
        sft_objectives.load(name, **settings), leaf, target, sequence_lengths=torch.full((6,), 10),
        reference=sft_objectives.Reference.from_logits(torch.from_numpy(logits["base"]), target, top_k=TOP),
    )  # fmt: skip
    (wanted,) = torch.autograd.grad(losses.sum(), leaf)
    wanted = wanted.gather(1, target[:, None]).squeeze(1).numpy()
    known = np.isfinite(gradient)
    assert why == "" and known.mean() > (0.9 if name == "lp_sft" else 0.999)
    # The table holds float32.
    assert np.abs(gradient[known] - wanted[known]).max() < 2e-5 * max(1, np.abs(wanted).max())
    if name in ("sft", "dft"):
        p = np.exp(rows["student"]["log_p"].astype(float))
        assert weight == pytest.approx(np.ones(60) if name == "sft" else p, rel=1e-6)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_table_does_not_keep_is_said(world, name):
    logits, labels = world
    rows = rows_of(logits["student"], labels)
    weight, gradient, why = weight_and_gradient({"name": name}, rows, {"base": rows_of(logits["base"], labels)})
    assert np.isnan(weight).all() and np.isnan(gradient).all() and UNKNOWN[name] in why


def planted(directory):
    """A base and three checkpoints over 8 chats of 50 tokens; token 7 of chat 3 moves most."""
    rng = np.random.default_rng(0)
    log_p = -rng.gamma(0.4, 1.0, 400) - 1e-3
    given = []
    n1 = np.where(np.arange(400) % 10 == 0, 3.0, 1.0)
    for place, (model, line) in enumerate((("base", ""), ("sft@10", "dft"), ("sft", "dft"), ("rl", "dft"))):
        moved = log_p * (1 - 0.1 * place)
        if place:
            moved[3 * 50 + 7] = np.log(0.02) if place < 3 else np.log(0.01)
        else:
            moved[3 * 50 + 7] = np.log(0.99)
        objective = {"name": "dft"} if place else {}
        path = write_tokens(directory / model, moved, length=50, n1=n1, n2=n1)
        given.append(tokens_of(path, model, line, objective=objective))
    return given


def page_data(output):
    page = (output / "pages" / "tokens.html").read_text()
    return json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)[1]), page


def test_the_largest_movers_come_first_and_the_page_is_whole(tmp_path):
    output = run(tmp_path, "tokens", planted(tmp_path), {"texts": 2, "movers": 12})
    first, *others = table(output, "tokens_movers")
    assert (first["chat"], first["position"], first["model"]) == (3, 12, "dft rl")
    assert (first["p base"], first["p"]) == pytest.approx((0.99, 0.01)) and len(others) == 11
    moves = [abs(row["p"] - row["p base"]) for row in (first, *others)]
    assert moves == sorted(moves, reverse=True)
    found, page = page_data(output)
    assert "http" not in page.split("<body")[-1].replace("http-equiv", "") and "src=" not in page
    assert [one["label"] for one in found["models"]] == ["base", "dft sft@10", "dft sft", "dft rl"]
    chat = next(one for one in found["chats"] if one["chat"] == 3)
    values = chat["values"][3]
    assert values["p"][7] == pytest.approx(0.01) and values["weight"][7] == pytest.approx(0.01)
    assert values["gradient"][7] == pytest.approx(-0.01 * 0.99, rel=1e-3) and values["plateau"][0] == 3
    assert chat["texts"][chat["tokens"][7]] == f" w{(150 + 7) % 40}"
    flat = data(output, "tokens")
    assert len(flat["p"]) == 4 * 100 and set(flat["model"]) == {one["label"] for one in found["models"]}
    assert "chat 3: from 0.990 to 0.010 in dft rl" in sentence(output)


def test_texts_cannot_end_the_page_and_missing_chats_are_named(tmp_path):
    path = tmp_path / "base"
    given = planted(tmp_path)
    with TokenWriter(path, lambda one: "</script><b>" if one == 0 else f"<!--{one}") as tokens:
        n = 50
        tokens.add(
            chat=np.zeros(n, int), position=np.arange(n), token=np.arange(n) % 3, log_p=np.full(n, -1.0),
            rank=np.ones(n, int), mass=np.ones(n), entropy=np.ones(n), n1=np.ones(n), n2=np.ones(n), kl=None,
            top_ids=np.zeros((n, TOP), int), top_log_p=np.full((n, TOP), -3.0),
        )  # fmt: skip
    output = run(tmp_path, "tokens", [given[0]])
    found, page = page_data(output)
    assert "</script><b>" in found["chats"][0]["texts"] and page.count("</script>") == 2 and "<!--" not in page[20:]
    assert sentence(output) == "The base model alone: no token has moved."
    with pytest.raises(ConfigError, match=r"settings\.chats=99: no token"):
        run(tmp_path, "tokens", [given[0]], {"chats": [99]}, "missing")
    with pytest.raises(ConfigError, match="no held-out tokens of the base model"):
        run(tmp_path, "tokens", given[1:], output="baseless")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine: install one to try the page in it")
def test_a_browser_shows_every_token_and_keeps_to_the_filters(tmp_path):
    output = run(tmp_path, "tokens", planted(tmp_path), {"texts": 2, "movers": 12})
    page = output / "pages" / "tokens.html"

    def shown(state):
        done = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=800,900",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
             f"{page.as_uri()}#{state}"],
            capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip
        assert 'data-ready="yes"' in done.stdout, done.stderr[-2000:]
        panes = re.findall(r'<div class="text" id="text_[ab]">(.*?)</div>', done.stdout, re.DOTALL)
        return done.stdout, [re.findall(r"<span (.*?)>(.*?)</span>", pane, re.DOTALL) for pane in panes]

    dom, (left, right) = shown("chat=0&a=0&b=3&by=drift&filter=drift&n=2&token=7")
    found, _ = page_data(output)
    chat = found["chats"][0]
    assert len(left) == len(right) == len(chat["tokens"]) == 50
    assert [html.unescape(text) for _, text in left] == [chat["texts"][one] for one in chat["tokens"]]
    assert sum('class="out' not in attributes for attributes, _ in right) == 1  # 2% of 50 tokens
    kept = next(at for at, (attributes, _) in enumerate(right) if 'class="out' not in attributes)
    drifts = np.abs(np.array(chat["values"][3]["p"]) - np.array(chat["values"][0]["p"]))
    assert kept == int(drifts.argmax())
    detail = re.search(r'<div id="detail".*?</table>', dom, re.DOTALL)[0]
    assert all(one["label"] in detail for one in found["models"]) and "Token 7 of chat" in detail
    assert re.search(r'<table id="movers">.*?</table>', dom, re.DOTALL)[0].count("<tr") == 13
    _, (left, _) = shown("chat=1&a=2&b=1&by=weight&filter=plateau&k=3")
    assert [at for at, (attributes, _) in enumerate(left) if 'class="out' not in attributes] == [0, 10, 20, 30, 40]

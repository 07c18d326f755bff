"""The renderer on templates of our own: rows, turns, prompts, refusals."""

from __future__ import annotations

import re

import pytest

from common.chats import Renderer
from common.errors import ConfigError
from data_prep.chats import Rendered, render
from data_prep.micro_world.tokenizer import build_tokenizer

END = "<|im_end|>"
QWEN3 = (
    "{% set n = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set c = m.content %}"
    "{% if m.role == 'assistant' %}{% set t = '' %}"
    "{% if '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > n.last %}{% set c = '<think>\n' + t.strip('\n') + '\n</think>\n\n' + c %}{% endif %}"
    "{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
OPENS_THINKING = (  # in the prompt alone, as DeepSeek-R1
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m.role + '\n' + c + ('<|im_end|>\n' if m.role == 'assistant' else '') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ 'note: ' }}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and one more?"},
    {"role": "assistant", "content": "three"},
]
THINKING = [
    CHAT[0],
    {"role": "assistant", "content": "<think>\none, one\n</think>\n\ntwo"},
    CHAT[2],
    {"role": "assistant", "content": "<think>\ntwo, one\n</think>\n\nthree"},
]


@pytest.fixture
def tokenizer():
    return build_tokenizer(["\\boxed{"], 256)


def texts(tokenizer, rows):
    """The supervised spans of each row."""
    found = []
    for row in rows:
        assert len(row.ids) == len(row.supervised)
        spans, current = [], []
        for index, supervised in zip([*row.ids, 0], [*row.supervised, 0], strict=True):
            if supervised:
                current.append(index)
            elif current:
                spans.append(tokenizer.decode(current))
                current = []
        found.append(spans)
    return found


def test_a_stable_template_gives_one_row(tokenizer):
    (row,) = render(tokenizer, CHAT)
    assert row.ids == tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert texts(tokenizer, [row]) == [[f"two{END}", f"three{END}"]]
    assert row == Rendered(row.ids, row.supervised)


def test_the_last_turn_alone_and_verls_mask(tokenizer):
    assert texts(tokenizer, render(tokenizer, CHAT, turns="last")) == [[f"three{END}"]]
    assert texts(tokenizer, render(tokenizer, CHAT, supervise_after_end=True)) == [[f"two{END}\n", f"three{END}\n"]]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_a_message_may_be_left_out_of_training(tokenizer, mark):
    chat = [CHAT[0], CHAT[1] | mark, CHAT[2], CHAT[3] | {"weight": 1}]
    (row,) = render(tokenizer, chat)
    assert texts(tokenizer, [row]) == [[f"three{END}"]]
    assert row.ids == render(tokenizer, CHAT)[0].ids
    with pytest.raises(ConfigError, match="no assistant turn is trained on"):
        render(tokenizer, chat[:2])


def test_what_a_rewriting_template_leaves_is_supervised(tokenizer):
    tokenizer.chat_template = QWEN3
    rows = render(tokenizer, THINKING)
    assert texts(tokenizer, rows) == [[f"two{END}", f"<think>\ntwo, one\n</think>\n\nthree{END}"]]


def test_template_arguments_that_change_the_prompt_cut_a_chat(tokenizer):
    tokenizer.chat_template = QWEN3
    arguments = {"enable_thinking": False}
    rows = render(tokenizer, CHAT, template_arguments=arguments)
    assert texts(tokenizer, rows) == [[f"two{END}"], [f"three{END}"]]
    renderer = Renderer(tokenizer, template_arguments=arguments)
    for row, turn in zip(rows, (1, 3), strict=True):
        _, prompt = renderer.prompt(CHAT[:turn])
        assert row.ids[: len(prompt)] == prompt and row.supervised.index(1) == len(prompt)
    with pytest.raises(ConfigError, match=r"^turn 2 .*set model\.template_arguments"):
        render(tokenizer, CHAT, template_arguments=arguments, prompt_mismatch="error")
    assert len(render(tokenizer, CHAT, template_arguments=arguments, turns="last", prompt_mismatch="error")) == 1


def test_thinking_that_only_the_prompt_opens_is_not_lost(tokenizer):
    tokenizer.chat_template = OPENS_THINKING
    rows = render(tokenizer, THINKING)
    assert texts(tokenizer, rows) == [[f"one, one\n</think>\n\ntwo{END}"], [f"two, one\n</think>\n\nthree{END}"]]
    asked = tokenizer.decode(rows[1].ids[: rows[1].supervised.index(1)])
    assert "one, one" not in asked and asked.endswith("<|im_start|>assistant\n<think>\n")
    reasons = [
        message | {"content": message["content"].split("\n\n")[-1], "reasoning_content": "hm"}
        if message["role"] == "assistant"
        else message
        for message in CHAT
    ]
    assert texts(tokenizer, render(tokenizer, reasons))[1] == [f"hm\n</think>\n\nthree{END}"]


def test_generation_marks_narrow_a_turn_but_not_its_end(tokenizer):
    tokenizer.chat_template = MARKED
    assert texts(tokenizer, render(tokenizer, CHAT[:2])) == [[f"two{END}"]]


def test_tokens_that_would_grow_together_stay_apart():
    """'\\n' and the answer's own '\\n' are one token together; inference never sees that one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    newline = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\n")[0][0]
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {newline * 2: len(vocabulary)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(newline, newline)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token="<pad>")
    tokenizer.chat_template = build_tokenizer([], 256).chat_template
    answers = [CHAT[0], {"role": "assistant", "content": "\ntwo"}, *CHAT[2:]]
    rows = render(tokenizer, answers)
    renderer = Renderer(tokenizer)
    assert len(rows) == 2
    for row, turn, said in zip(rows, (1, 3), ("\ntwo", "three"), strict=True):
        _, prompt = renderer.prompt(answers[:turn])
        assert row.ids[: len(prompt)] == prompt
        assert str(tokenizer.decode(row.ids[len(prompt) :])).startswith(said + END)


REFUSALS = {
    "alternate": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}",
        [CHAT[0], CHAT[0], CHAT[1]],
        r"^turn 2 \(user\): the chat template refuses it: TemplateError: roles must alternate$",
    ),
    "nothing": (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        CHAT,
        r"^turn 2 \(assistant\): the chat template ends it with nothing",
    ),
    "left out": (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}",
        [{"role": "system", "content": "be brief"}, *CHAT],
        r"^turn 1 \(system\): the chat template leaves out its content",
    ),
    "calls": (
        "{% for m in messages %}{{ m.role + (m.content or '') + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}",
        [
            CHAT[0],
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
        ],
        r"^turn 2 \(assistant\): the chat template leaves out its tool_calls",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_a_template_does_not_take_is_one_line(tokenizer, case):
    tokenizer.chat_template, chat, message = REFUSALS[case]
    with pytest.raises(ConfigError, match=message) as error:
        render(tokenizer, chat)
    assert "\n" not in str(error.value)


def test_text_that_would_end_a_turn_is_refused(tokenizer):
    chat = [CHAT[0], {"role": "assistant", "content": f"it is {END}"}]
    with pytest.raises(ConfigError, match=r"^turn 2 \(assistant\): its text has <\|im_end\|>"):
        render(tokenizer, chat)


def test_content_in_text_parts_is_joined_and_other_parts_are_refused(tokenizer):
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}]
    assert render(tokenizer, [{"role": "user", "content": parts}, CHAT[1]]) == render(tokenizer, CHAT[:2])
    with pytest.raises(ConfigError, match=r"turn 1 \(user\): content must be text or text parts"):
        render(tokenizer, [{"role": "user", "content": [{"type": "image", "url": "x"}]}, CHAT[1]])


def test_reserved_template_arguments_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"model\.template_arguments\.tools: reserved"):
        render(tokenizer, CHAT, template_arguments={"tools": []})


def test_a_bad_chat_does_not_stop_its_neighbours(tokenizer):
    tokenizer.chat_template = REFUSALS["alternate"][0]
    first, second, third = Renderer(tokenizer).many([(CHAT, None), ([CHAT[0]] * 2 + CHAT[1:2], None), (CHAT[:2], None)])
    assert isinstance(second, ConfigError)
    assert first == render(tokenizer, CHAT) and third == render(tokenizer, CHAT[:2])


def test_prompts_of_chats_are_those_of_inference(tokenizer):
    renderer = Renderer(tokenizer)
    found = renderer.prompts([CHAT[:1], CHAT[:3]])
    assert found == [renderer.prompt(CHAT[:1])[1], renderer.prompt(CHAT[:3])[1]]
    expected = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert found[1] == expected


def test_a_prompt_whose_tools_the_template_leaves_out_is_refused(tokenizer):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    renderer = Renderer(tokenizer)
    refused, fine = renderer.prompts([CHAT[:1], CHAT[:1]], [[tool], None])
    assert isinstance(refused, ConfigError)
    assert re.fullmatch(r"turn 1 \(\w+\): the chat template leaves out the tools; use another one", str(refused))
    assert fine == renderer.prompt(CHAT[:1])[1]

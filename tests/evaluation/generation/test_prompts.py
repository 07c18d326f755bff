import json

import pytest

from evaluation.generation import Prompter
from evaluation.generation.context import context_length
from evaluation.generation.prompts import Form

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]


def test_chat_and_plain_prompts(model_directory):
    prompter = Prompter(model_directory(tied=True, seed=0))
    chat = prompter.prompt(MESSAGES)
    assert chat.text.endswith("1+1=<|im_end|>\n<|im_start|>assistant\n")
    assert prompter.tokenizer.decode(chat.ids) == chat.text
    assert prompter.prompt(MESSAGES, "plain").text == "Be brief.\n\n1+1="


def test_a_template_file_replaces_the_tokenizers_own(model_directory, tmp_path):
    (tmp_path / "template.jinja").write_text("{{ messages[-1]['content'] }} ->")
    assert Prompter(model_directory(tied=True, seed=0), tmp_path / "template.jinja").prompt(MESSAGES).text == "1+1= ->"


def test_a_missing_template_or_unknown_style_is_refused(model_directory):
    prompter = Prompter(model_directory(tied=True, seed=0))
    with pytest.raises(ValueError, match="chat, plain"):
        prompter.prompt(MESSAGES, "base")
    prompter.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        prompter.prompt(MESSAGES)


SHOTS = (("3+4=", "7"), ("5+5=", "10"))


def test_solved_problems_and_a_beginning_go_before_the_answer(model_directory):
    prompter = Prompter(model_directory(tied=True, seed=0))
    chat = prompter.prompt(MESSAGES, Form(shots=SHOTS[:1], prefill="It is"))
    assert chat.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n3+4=<|im_end|>\n"
        "<|im_start|>assistant\n7<|im_end|>\n<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\nIt is"
    )
    assert prompter.tokenizer.decode(chat.ids) == chat.text
    plain = Form("plain", "Question: {prompt}\nAnswer: {answer}", SHOTS)
    # A space before the answer is the model's to write: most tokens begin with theirs.
    assert prompter.prompt(MESSAGES[1:], plain).text == (
        "Question: 3+4=\nAnswer: 7\n\nQuestion: 5+5=\nAnswer: 10\n\nQuestion: 1+1=\nAnswer:"
    )
    braces = [{"role": "user", "content": r"\frac{1}{2} {answer}"}]
    assert prompter.prompt(braces, plain).text.endswith("Question: \\frac{1}{2} {answer}\nAnswer:")
    assert prompter.prompt(MESSAGES[1:], Form("plain", prefill=" 2")).text == "1+1= 2"


@pytest.mark.parametrize("plain", ["{prompt}", "{answer} {prompt}", "{prompt}{answer}{answer}", "Q: A:"])
def test_a_form_without_its_places_is_refused(plain):
    with pytest.raises(ValueError, match=r"must hold \{prompt\} and after it \{answer\}"):
        Form("plain", plain)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),  # Qwen2.5-Math
        ({"text_config": {"max_position_embeddings": 8192}, "model_type": "gemma3"}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 40960,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 4096),
        ({"model_type": "mamba"}, None),
    ],
)
def test_the_context_is_what_the_configuration_says(tmp_path, config, length):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path) == length

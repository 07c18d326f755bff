import pytest

from evaluation.generation import Prompter

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

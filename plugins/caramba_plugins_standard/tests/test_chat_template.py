"""Chat templates give the text that transformers' ``apply_chat_template`` gives."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from caramba_plugins_standard.chat_template import ChatTemplate, chat_template_of

from caramba_core.errors import InputError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']
    + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "smollm2": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}
{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama2": """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + content | trim + ' ' + eos_token }}
    {% endif %}
{% endfor %}""",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and '</think>' in content and loop.index0 < ns.last_query_index %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}""",
    "json and loops": """{{ bos_token }}{% for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
  {{ message | tojson }} {{ dict(a=1, b=message.role) | tojson(indent=2) }}
  {%- generation %}{{ message.content | upper }}{% set x = 3 %}{% endgeneration %}
  {%- if loop.index > 4 %}{% break %}{% endif %}
{% endfor %}{{ x }}{{ nothing }}{{ eos_token }}{{ pad_token }}""",
}

CHATS = {
    "one": [{"role": "user", "content": "Hi <b> & é 日"}],
    "system": [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "  Why?  "}],
    "turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello! "},
        {"role": "user", "content": "And\nnow?"},
    ],
}


def transformers_tokenizer() -> Any:
    transformers = importlib.import_module("transformers")
    backend = importlib.import_module("tokenizers").Tokenizer(importlib.import_module("tokenizers").models.BPE())
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_as_transformers(template: str, chat: list[dict[str, str]]) -> None:
    theirs = transformers_tokenizer()
    for prompt in (True, False):
        expected = theirs.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        assert ChatTemplate(template, TOKENS, "it").render(chat, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    ("template", "chat", "words"),
    [
        (TEMPLATES["llama2"], CHATS["turns"][1:], "Conversation roles must alternate"),
        ("{{ messages[0].content.__class__.__mro__ }}", CHATS["one"], "unsafe"),
        ("{{ messages.append(1) }}", CHATS["one"], "unsafe"),
        ("{% set n = namespace(a=1) %}{% set n._b = 2 %}", CHATS["one"], "'_b'"),
        ("{{ dict.__class__.__mro__ }}", CHATS["one"], "unsafe"),
        ("{{ 1 / 0 }}", CHATS["one"], "division"),
        ("{{ messages[9].content.x }}", CHATS["one"], "no element 9"),
        ("{% for i in range(10**9) %}{% endfor %}", CHATS["one"], "too big|too large|Range"),
    ],
)
def test_what_a_template_refuses(template: str, chat: list[dict[str, str]], words: str) -> None:
    with pytest.raises(InputError, match="its chat template refuses the chat") as caught:
        ChatTemplate(template, TOKENS, "it").render(chat)
    assert any(word in str(caught.value) for word in words.split("|"))


def test_a_template_that_is_none() -> None:
    with pytest.raises(InputError, match="it: its chat template cannot be read"):
        ChatTemplate("{% for %}", TOKENS, "it")


def test_where_a_checkpoint_keeps_it() -> None:
    def rendered(jinja: str | None = None, **settings: Any) -> str:
        companions = {"tokenizer_config.json": json.dumps({"eos_token": "<|im_end|>"} | settings)}
        companions |= {} if jinja is None else {"chat_template.jinja": jinja}
        return chat_template_of("it", companions).render(CHATS["one"])

    with pytest.raises(InputError, match="it has no chat template") as caught:
        rendered()
    assert "caramba generate" in str(caught.value)
    assert rendered(chat_template="one {{ eos_token }}") == "one <|im_end|>"
    assert rendered(chat_template="{{ bos_token }}", bos_token={"content": "<b>", "lstrip": False}) == "<b>"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two"}]
    assert rendered(chat_template=named) == "two"
    with pytest.raises(InputError, match="has no chat template"):
        rendered(chat_template=named[:1])
    assert rendered(jinja="three", chat_template="one") == "three"


@pytest.mark.parametrize(
    ("template", "chat", "answers"),
    [
        ("chatml", "turns", ["<think>\nhm\n</think>\n\nHello! <|im_end|>"]),
        ("smollm2", "turns", ["<think>\nhm\n</think>\n\nHello! <|im_end|>"]),
        ("llama2", "turns", ["<think>\nhm\n</think>\n\nHello! </s>"]),
        ("json and loops", "turns", ["HI", "<THINK>\nHM\n</THINK>\n\nHELLO!", "AND\nNOW?"]),
        ("chatml", "one", []),
    ],
)
def test_where_answers_stand(template: str, chat: str, answers: list[str]) -> None:
    """Marked by the template, or what a message of an assistant adds."""
    made = ChatTemplate(TEMPLATES[template], TOKENS, "it")
    text, places = made.answers(CHATS[chat])
    assert text == made.render(CHATS[chat], add_generation_prompt=False)
    assert [text[first:last].strip() for first, last in places] == answers


def test_answers_that_cannot_be_told() -> None:
    qwen = ChatTemplate(TEMPLATES["qwen3"], TOKENS, "it")
    with pytest.raises(InputError, match="message 2 is written differently once the chat goes on"):
        qwen.answers(CHATS["turns"])
    assert len(qwen.answers(CHATS["turns"][:2])[1]) == 1
    cut = ChatTemplate("{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x[1:] }}", TOKENS, "it")
    with pytest.raises(InputError, match="changes what it marks"):
        cut.answers(CHATS["one"])

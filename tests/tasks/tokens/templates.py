"""Chat templates of the shapes that model families use, in words of our own, and tokenizers to go with them."""

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHARACTERS

ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
)
CHATML_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template, the tokens that it writes, and what the tokenizer adds to a text by itself."""

    template: str
    tokens: tuple[str, ...] = ()
    bos: str | None = "<s>"
    eos: str = "</s>"
    prefix: tuple[str, ...] = ()  # added by the tokenizer
    suffix: tuple[str, ...] = ()
    end: str = ""  # what ends an answer, where that is not EOS
    merged: tuple[str, ...] = ()  # strings of one token each

    def tokenizer(self) -> PreTrainedTokenizerFast:
        special = ["<unk>", *dict.fromkeys(t for t in (self.bos, self.eos, *self.prefix, *self.tokens) if t)]
        vocabulary = {token: i for i, token in enumerate([*special, *CHARACTERS, *self.merged])}
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*self.merged, r"[\s\S]"])), "isolated")
        inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        inner.post_processor = processors.TemplateProcessing(
            single=[*self.prefix, "$A", *self.suffix],
            special_tokens=[(t, vocabulary[t]) for t in {*self.prefix, *self.suffix}],
        )
        out = PreTrainedTokenizerFast(
            tokenizer_object=inner, unk_token="<unk>", bos_token=self.bos, eos_token=self.eos
        )
        out.pad_token = out.eos_token
        out.chat_template = self.template
        return out


FAMILIES = {
    "llama2": Family(
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set rules = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set rules = '' %}{% endif %}{% for message in rest %}" + ALTERNATE +
        "{% if message['role'] == 'user' %}{% set text = message['content'] %}{% if loop.first and rules %}"
        "{% set text = '<<SYS>>\n' + rules + '\n<</SYS>>\n\n' + text %}{% endif %}"
        "{{ bos_token + '[INST] ' + text | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
        prefix=("<s>",),
    ),
    "llama3": Family(
        "{% for message in messages %}{% set text = '<|start|>' + message['role'] + '<|stop|>\n\n' + "
        "message['content'] | trim + '<|eot|>' %}{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
        "{{ text }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}",
        tokens=("<|start|>", "<|stop|>", "<|eot|>"),
        prefix=("<s>",),
        end="<|eot|>",
    ),
    "qwen2.5-base": Family(
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
        + CHATML_TURNS,
        tokens=("<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|endoftext|>",
        end="<|im_end|>",
        merged=("\n\n", "b."),
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        "{% for message in messages %}" + ALTERNATE +
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        tokens=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        prefix=("<bos>",),
        end="<end_of_turn>",
    ),
    "zephyr": Family(
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        prefix=("<s>",),
    ),
    "mistral": Family(
        "{{ bos_token }}{% for message in messages %}" + ALTERNATE +
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}",
        tokens=("[INST]", "[/INST]"),
        prefix=("<s>",),
    ),
    "phi3": Family(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        tokens=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        eos="<|endoftext|>",
        prefix=("<s>",),
        end="<|end|>",
    ),
    "deepseek": Family(
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'Assistant: ' + message['content'] + eos_token }}{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        prefix=("<s>",),
        merged=(": ",),  # 'Assistant:' alone ends in another token than before an answer
    ),
    "deepseek-r1": Family(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<|User|>' + message['content'] }}{% elif message['role'] == 'system' %}{{ message['content'] }}{% else %}"
        "{% set text = message['content'] %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}"
        "{% endif %}{{ '<|Assistant|>' + text + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
        tokens=("<|User|>", "<|Assistant|>", "<think>", "</think>"),
        prefix=("<s>",),
    ),
    "qwen3": Family(
        "{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
        "{%- if message.role == 'assistant' %}{%- set text = message.content %}{%- set why = '' %}"
        "{%- if '</think>' in text %}{%- set why = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>assistant\n' }}"
        "{%- if loop.index0 > ns.last %}{{- '<think>\n' + why + '\n</think>\n\n' }}{%- endif %}"
        "{{- text + '<|im_end|>\n' }}{%- else %}"
        "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
        "{%- endif %}",
        tokens=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        bos=None,
        eos="<|im_end|>",
    ),
    "smollm3": Family(
        "{%- set today = strftime_now('%d %B %Y') -%}{{- '<|im_start|>system\nToday: ' + today + '\n' -}}"
        "{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- set rest = messages[1:] -%}{%- else -%}"
        "{%- set rest = messages -%}{%- endif -%}{{- '<|im_end|>\n' -}}{%- for message in rest -%}"
        "{%- if message.role == 'assistant' -%}{% generation %}{{- '<|im_start|>assistant\n' + message.content + "
        "'<|im_end|>\n' -}}{% endgeneration %}{%- else -%}"
        "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}",
        tokens=("<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
    ),
    "llama3.2": Family(
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
        "        {%- set date_string = strftime_now(\"%d %b %Y\") %}\n    {%- else %}\n"
        "        {%- set date_string = '1 Jan 1970' %}\n    {%- endif %}\n{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set rules = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set rules = '' %}\n{%- endif %}\n"
        "{{- '<|start|>system<|stop|>\n\nToday: ' + date_string + '\n' + rules + '<|eot|>' }}\n"
        "{%- for message in messages %}\n    {%- if message.role == 'tool' %}\n"
        "        {{- '<|start|>ipython<|stop|>\n\n' }}\n        {%- if message.content is mapping or "
        "message.content is iterable %}\n            {{- message.content | tojson }}\n        {%- else %}\n"
        "            {{- message.content }}\n        {%- endif %}\n        {{- '<|eot|>' }}\n"
        "    {%- elif 'tool_calls' in message %}\n        {%- if message.tool_calls | length != 1 %}\n"
        "            {{- raise_exception('One call at a time') }}\n        {%- endif %}\n"
        "        {%- set call = message.tool_calls[0].function %}\n        {{- '<|start|>assistant<|stop|>\n\n' }}\n"
        "        {{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}\n        {{- call.arguments | tojson }}\n"
        "        {{- '}<|eot|>' }}\n    {%- else %}\n        {{- '<|start|>' + message['role'] + '<|stop|>\n\n' + "
        "message['content'] | trim + '<|eot|>' }}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|start|>assistant<|stop|>\n\n' }}\n{%- endif %}\n",
        tokens=("<|start|>", "<|stop|>", "<|eot|>"),
        prefix=("<s>",),
        end="<|eot|>",
    ),
    "chatglm": Family(
        "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        tokens=("<|user|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>"),
        bos=None,
        eos="<|endoftext|>",
        prefix=("[gMASK]", "<sop>"),
    ),
    "hermes": Family(
        "{%- for message in messages %}{%- if message.role == 'tool' %}{%- if loop.index0 == 0 or "
        "messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
        "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}{%- if loop.last or "
        "messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
        "{%- elif message.role == 'assistant' and message.tool_calls %}{{- '<|im_start|>assistant' }}"
        "{%- if message.content %}{{- '\n' + message.content }}{%- endif %}{%- for call in message.tool_calls %}"
        "{{- '\n<tool_call>\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}"
        "{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
        "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
        tokens=("<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
    ),
    "parts-or-text": Family(
        "{{- bos_token }}{%- for message in messages %}{{- '<|start|>' + message.role + '<|stop|>\n\n' }}"
        "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
        "{%- if part.type == 'image' %}{{- '<|image|>' }}{%- else %}{{- part.text }}{%- endif %}{%- endfor %}"
        "{%- endif %}{{- '<|eot|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\n\n' }}{%- endif %}",
        tokens=("<|start|>", "<|stop|>", "<|eot|>"),
        prefix=("<s>",),
        end="<|eot|>",
    ),
    "parts-only": Family(
        "{% for message in messages %}{{ message.role | capitalize + ':' }}{% for part in message.content %}"
        "{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}{{ '<end>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        tokens=("<end>",),
        prefix=("<s>",),
        end="<end>",
    ),
    "plain": Family(
        "{% for message in messages %}{{ message.role ~ ': ' ~ message.content ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        bos=None,
        suffix=("</s>",),
    ),
}  # fmt: skip

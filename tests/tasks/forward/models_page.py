"""The page docs/models.md, of the architectures that the tests build. It is written by

python -m tests.tasks.forward.models_page > docs/models.md
"""

from tests.tasks.forward.architectures import DENSE, HYBRIDS, MIXTURES, OTHERS

INTRODUCTION = """# Models

<!-- made by python -m tests.tasks.forward.models_page; tests/tasks/forward/test_architectures.py runs every row -->

The architectures of transformers that are tested, at tiny size with random weights, in float32 and in bfloat16. The
tests compare log-probabilities of completions with plain transformers on single sequences, LoRA gradients with float64,
the adapter as `PeftModel.from_pretrained` loads it into a fresh model, and greedy and sampled answers with those of
transformers.

**Packed**: the rows of a batch are one row without padding, with each prompt once, and logits are computed only where a
token is predicted. **Padded**: batches and logits as in transformers; slower, with the same results. **Refused**: an
error of one line before anything starts. For a model that is not in this table the same choice is made when it is
loaded, and the reason for padded batches is logged:

- from its modules: every layer must call the attention that transformers can replace once, with the window of its
  configuration and no other feature; no layer may carry a state or mix tokens in another way; the head must be linear,
  up to a factor (`tasks/forward/logits.py` replaces its output by artificial logits and checks the result);
- by a trial on a few tokens, in the dtype and quantisation of the run: other tokens in one branch must not change the
  results of other rows, and packed rows must give the results of single sequences. The thresholds are multiples of the
  noise, which is how far the same rows differ when they are batched in another way; in the first test, dense models do
  not differ at all, in any dtype.

Every model must also be causal and, before it is trained, give the same results in training as the reference. With
dynamic NTK scaling and LongRoPE the results of a long row depend on the longest row of its batch; rows above the
model's original length are therefore run one by one. Models without a causal class in transformers, such as Llava and
Qwen-VL, are refused when they are loaded.
"""


def page() -> str:
    """docs/models.md."""
    sections = {
        "Dense": DENSE,
        "Mixtures of experts": MIXTURES,
        "Linear attention, convolutions and states": HYBRIDS,
        "Decoders of other families, and what is refused": OTHERS,
    }
    lines = [INTRODUCTION]
    for title, rows in sections.items():
        lines += [f"## {title}", "", "| architecture | path | why | note |", "|---|---|---|---|"]
        lines += [f"| {row.name} | {row.path} | {row.reason} | {row.note} |" for row in rows]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")

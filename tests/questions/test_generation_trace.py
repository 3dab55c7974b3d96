from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

import interpretune as it
from interpretune.testing import tiny_llama, tiny_tokenizer

TEMPLATE = "{{ '<bos> ' + messages[0].content }}{% if add_generation_prompt %}{{ ' near' }}{% endif %}"


def plain(model, ids, steps, top):
    """Greedy tokens, their log-probabilities, and the likeliest, by whole forwards."""
    told = []
    for _ in range(steps):
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids = [*ids, int(log_probs.argmax())]
        told.append((ids[-1], float(log_probs.max()), log_probs.topk(top)))
        if ids[-1] == model.config.eos_token_id:
            break
    return told


@pytest.mark.parametrize("training", [True, False])
def test_each_step_is_that_of_whole_forwards(training):
    model, tokenizer = tiny_llama().double(), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    expected = [plain(model.eval(), tokenizer(text).input_ids, 4, 3) for text in ("Ada sees the", "the red dog near")]
    model.train(training)
    traces = it.trace_generation(
        model, tokenizer, ["Ada sees the", [{"role": "user", "content": "the red dog"}]], max_new_tokens=4, top=3
    )
    assert model.training == training
    for trace, told in zip(traces, expected, strict=True):
        assert [item.token for item in trace.generated] == [tokenizer.decode(token) for token, *_ in told]
        for item, (_, log_prob, best) in zip(trace.generated, told, strict=True):
            assert item.log_prob == pytest.approx(log_prob, abs=1e-5)
            assert [token for token, _ in item.likeliest] == [tokenizer.decode(i) for i in best.indices]
    assert traces[1].read == "<bos> the red dog near"
    assert traces[0].tokens == ("<bos>", "Ada", "sees", "the")
    assert traces[0].to_pandas().token.tolist() == [item.token for item in traces[0].generated]


def test_one_chat_is_one_prompt_and_text_is_escaped():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    (trace,) = it.trace_generation(tiny_llama(), tokenizer, [{"role": "user", "content": "the dog"}], max_new_tokens=1)
    assert trace.read == "the dog"
    assert "<unk>" not in it.trace_generation(tiny_llama(), tokenizer, "xyzzy", max_new_tokens=1)[0]._repr_html_()


def test_letters_of_several_tokens_are_in_the_text():
    letters = Tokenizer(BPE({"a": 0, "Ã": 10, "©": 11}, []))
    letters.pre_tokenizer, letters.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer, model = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="a"), tiny_llama()
    new = iter([10, 11])
    model.lm_head.register_forward_hook(lambda _, __, output: output.index_fill(-1, torch.tensor(next(new)), 99))
    (trace,) = it.trace_generation(model, tokenizer, "a", max_new_tokens=2)
    assert trace.text == "é"


def test_what_cannot_be_continued_is_refused():
    with pytest.raises(it.AnalysisError, match="num_beams is 2"):
        it.trace_generation(tiny_llama(), tiny_tokenizer(), "Ada", num_beams=2)
    with pytest.raises(it.AnalysisError, match="Linear has no generate"):
        it.trace_generation(torch.nn.Linear(1, 1), tiny_tokenizer(), "Ada")
    with pytest.raises(it.ConfigurationError, match="top is 0"):
        it.trace_generation(tiny_llama(), tiny_tokenizer(), "Ada", top=0)
    with pytest.raises(it.DataError, match="chat template"):
        it.trace_generation(tiny_llama(), tiny_tokenizer(), [{"role": "user", "content": "Ada"}])

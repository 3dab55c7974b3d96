"""What cannot be asked, and stores of what was asked."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import interpretune as it
from interpretune.questions import KL, Latents
from interpretune.system.progress import progress_bar
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer

ROWS = [
    it.PromptRow("Ada sees the red dog", (" house", " tree"), 0),
    it.PromptRow("Bo likes a boat and", (" Max", " Nora", " Kit"), 1, spans={"what": "boat"}),
]
CHAT = [{"role": "user", "content": "Ada"}]
CORRUPTED = (
    r"Row 2, .* has 3 tokens and its corrupted prompt 2.* From token 2 on .*\['has'\] .* Put words there that are as"
)
TWO = [it.PromptRow(row.prompt, row.answers[:2], row.correct) for row in ROWS]


@pytest.fixture(scope="module")
def model():
    return tiny_llama().double().eval()


@pytest.mark.parametrize(
    ("rows", "given", "error", "told"),
    [
        (TWO, {"units": it.Heads(1, [4])}, it.AnalysisError, "4 heads, from 0 to 3; there is no head 4. Ask for"),
        (TWO, {"units": it.Heads(7)}, it.AnalysisError, "attn_z of the layers 0 to 2; take one"),
        (TWO, {"units": it.Neurons(0, 99999)}, it.AnalysisError, "there is no neuron 99999"),
        (TWO, {"units": it.Neurons(-1)}, it.AnalysisError, "no neurons of layer -1"),
        (TWO, {"units": it.Vector("layers.1.nowhere")}, it.HookPointError, "nowhere"),
        (TWO, {"units": "heads"}, it.AnalysisError, "A str is no choice of units"),
        (TWO, {"units": it.Heads}, it.AnalysisError, "The class Heads is no choice of units"),
        (["Ada sees"], {}, it.DataError, "the answers with answers=..., or give the answers themselves"),
        (
            [it.PromptRow("Ada " * 126 + "Ada", (" house", " tree in June"))],
            {},
            it.TokenizationError,
            "the most is 128",
        ),
        ([it.PromptRow("Ada", (" a", " a"))], {}, it.TokenizationError, "cannot be told apart"),
        ([it.PromptRow("Ada", (" a",))], {}, it.DataError, "Row 0 has 1 answers, .* Give more, or ask for log_prob"),
        (
            [it.PromptRow("Ada", (" a", " a dog"))],
            {},
            it.TokenizationError,
            "Row 0, .* ' a' .* how the tokens begin",
        ),
        (
            [{"prompt": "Ada", "answers": ["", " a"]}],
            {},
            it.DataError,
            "Row 0: .* none of them empty",
        ),
        (
            [{"prompt": "Ada", "answers": [" a", " b"], "correct": 2}],
            {},
            it.DataError,
            "Row 0: .* is 2.* Count from 0",
        ),
        (
            [{"prompt": "Ada", "answers": [" a"], "correct": " b"}],
            {},
            it.DataError,
            "Row 0: .* ' b' .* Write it",
        ),
        ([*TWO, it.PromptRow("Ada has", (" a", " the"), 0, "Ada")], {}, it.TokenizationError, CORRUPTED),
        (
            [it.PromptRow("Ada", (" a",), spans={"x": "Bo"})],
            {},
            it.DataError,
            "Row 0, .* 'x' .* not in .* Write",
        ),
        (
            [it.PromptRow("a a", (" the",), spans={"x": "a"})],
            {},
            it.DataError,
            "Row 0, .* 0 and 2. Say which: ",
        ),
        (
            [it.PromptRow(CHAT, (" a", " the"))],
            {},
            it.DataError,
            "Row 0, .* no chat template. Use",
        ),
        (TWO, {"units": []}, it.AnalysisError, "an empty list"),
        (TWO, {"units": [it.Heads(1), it.Vector("blocks.1.attn.hook_z")]}, it.AnalysisError, "named twice"),
        (TWO, {"objective": "logits"}, it.ConfigurationError, "logit_diff, log_prob, prob, kl"),
        (TWO, {"objective": 3}, it.ConfigurationError, r"3 \(int\) is no objective"),
        (TWO, {"objective": {"logit_diff": {"versus": "max"}}}, it.ConfigurationError, "its options are against"),
        (TWO, {"objective": lambda outcome: outcome.answers}, it.DataError, "expected 2 floating-point numbers"),
        (ROWS, {}, it.DataError, "Row 1 has 3 answers.* one other. Give it two, .* LogitDiff\\(against='mean'\\)"),
        (TWO, {"value": "average"}, it.AnalysisError, "zero, mean, corrupted"),
        (TWO, {"value": float("nan")}, it.AnalysisError, "to a finite number"),
        (TWO, {"value": torch.zeros(1000)}, it.AnalysisError, r"cannot be set to tensor\(.{,60}: units are"),
        (TWO, {"value": {"layers.1.attn_z": torch.full((32,), torch.nan)}}, it.AnalysisError, "NaN or infinite"),
        (TWO, {"value": "corrupted"}, it.DataError, "row 0 has no corrupted prompt"),
        (TWO, {"value": {"layers.1.attn_z": torch.zeros(3)}}, it.AnalysisError, "shapes"),
        (ROWS, {"positions": "what", "objective": KL()}, it.DataError, "row 0 has no spans"),
        (TWO, {"method": "guess"}, it.ConfigurationError, "exact, gradient, integrated_gradients"),
        (TWO, {"objective": "kl", "budget": 3}, it.ConfigurationError, "its gradient there is 0"),
        (TWO, {"steps": 0}, it.ConfigurationError, "steps is 0"),
        (TWO, {"batch_size": 0}, it.ConfigurationError, "batch_size is 0"),
        (TWO, {"budget": 1.5}, it.ConfigurationError, "budget is 1.5"),
        ([], {}, it.DataError, "prompts is empty"),
        ([it.PromptRow("Bo likes")], {"objective": "loss"}, it.DataError, "no loss of the prompt depends on"),
        (TWO, {"mean_over": []}, it.DataError, "mean_over is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused(model, rows, given, error, told):
    with pytest.raises(error, match=told):
        it.effects(model, tiny_tokenizer(), rows, **{"units": it.Heads(1), **given})


@pytest.mark.parametrize("only", ["one", 1.5, [1, 2.0]])
def test_units_are_chosen_by_whole_numbers(only):
    with pytest.raises(it.AnalysisError, match="whole numbers"):
        it.Neurons(1, only)


def test_numbers_of_other_libraries_are_numbers(model):
    one, other = (
        it.effects(model, tiny_tokenizer(), TWO, units=it.Neurons(1, only), value=value)
        for only, value in ((3, 0.5), (np.array([3]), np.float32(0.5)))
    )
    pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas())
    assert other.question["value"] == 0.5


def test_a_model_of_no_known_library_is_refused():
    with pytest.raises(it.AnalysisError, match="A Linear is neither"):
        it.effects(torch.nn.Linear(2, 2), tiny_tokenizer(), TWO, units=it.Heads(1))


def test_an_interrupted_call_goes_on_and_another_question_is_refused(model, tmp_path, monkeypatch):
    folder, asked = tmp_path / "store", {"units": it.Heads(1), "batch_size": 1}
    whole = it.effects(model, tiny_tokenizer(), TWO, **asked)
    from interpretune.questions.question import Question

    compute, calls = Question.computed, []

    def interrupted(self, batch):
        calls.append(batch.first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, batch)

    monkeypatch.setattr(Question, "computed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        it.effects(model, tiny_tokenizer(), TWO, store=folder, **asked)
    again = it.effects(model, tiny_tokenizer(), TWO, store=folder, **asked)
    assert calls == [0, 1, 1]
    pd.testing.assert_frame_equal(it.Effects.open(folder).to_pandas(), whole.to_pandas())
    pd.testing.assert_frame_equal(again.rows(), whole.rows())
    with pytest.raises(it.StoreError, match="belongs to another run"):
        it.effects(model, tiny_tokenizer(), TWO, store=folder, value=0.5, **asked)
    with torch.no_grad():
        other = tiny_llama(seed=1).double().eval()
    with pytest.raises(it.StoreError, match="belongs to another run"):
        it.effects(other, tiny_tokenizer(), TWO, store=folder, **asked)


def test_texts_answers_for_all_and_a_data_frame_are_the_same_question(model):
    prompts = ["Ada sees the red dog", "Bo likes a boat and"]
    asked = {"units": it.Neurons(1, [0, 5]), "objective": "log_prob"}
    one = it.effects(model, tiny_tokenizer(), prompts, (" house", " tree"), correct=[0, " tree"], **asked)
    frame = pd.DataFrame({"prompt": prompts, "answers": [[" house", " tree"]] * 2, "correct": [0, 1]})
    other = it.effects(model, tiny_tokenizer(), frame, **asked)
    pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas())


def test_a_terminal_shows_how_far_a_call_is(model, monkeypatch):
    out = io.StringIO()
    bar = partial(progress_bar, Console(file=out, force_terminal=True))
    monkeypatch.setattr("interpretune.questions.answering.progress_bar", bar)
    it.effects(model, tiny_tokenizer(), TWO, units=it.Heads(1), batch_size=1)
    assert "2/2" in out.getvalue()


def test_a_result_is_shown_and_drawn(model):
    result = it.effects(model, tiny_tokenizer(), TWO, units=[it.Heads(1), it.Vector("layers.0.mlp_out")])
    top = result.top(3)
    sizes = (
        result.to_pandas().assign(size=lambda table: table.effect.abs()).groupby(["units", "unit"])["size"].sum() / 2
    )
    assert list(top.mean_size) == pytest.approx(sorted(sizes, reverse=True)[:3])
    assert set(top.name) <= {"layers.0.mlp_out", *(f"layers.1.attn_z head {head}" for head in range(4))}
    assert list(result.plot(3).data[0].y) == list(top.name)
    assert "<table" in result._repr_html_()
    assert "4 heads of layers.1.attn_z" in repr(result)
    told = str(result).splitlines()
    assert told[1] == f"The model rates the correct answer highest in {result.share_correct:.0%} of rows."
    assert [line.split()[-1] for line in told[4:]] == ["2"] * 5  # a line for each unit, and nothing cut away
    assert result.question["unit"] == "logits"


def test_chosen_latents_are_those_of_all(model):
    class Coder:
        name, hook_point, output_hook_point = "coder", "layers.1.resid_post", "layers.1.resid_post"
        d_in, d_sae, skips_special_tokens = 32, 8, False
        weight = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def encode(self, activations):
            return (activations @ self.weight).relu()

        def decode(self, latents):
            return latents @ self.weight.T

        def dashboard_url(self):
            return None

    everything = it.effects(model, tiny_tokenizer(), TWO, units=Coder()).to_pandas()
    some = it.effects(model, tiny_tokenizer(), TWO, units=Latents(Coder(), [1, 3, 5])).to_pandas()
    expected = everything[everything.unit.isin([1, 3, 5])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)
    assert len(some)

"""Effects of units on objectives, compared with plain loops: a forward with a torch hook for each row and unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from interpretune.questions import Heads, LogitDiff, Neurons, PromptRow, Vector, effects
from interpretune.testing.tiny_models import VOCABULARY, tiny_gpt2, tiny_llama, tiny_tokenizer

LAYER = 1
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "vocab_size": len(VOCABULARY),
}


def tiny_gemma3() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **SIZES,
        sliding_window=4,
        pad_token_id=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return Gemma3ForCausalLM(config)


def tiny_qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "gemma3": tiny_gemma3, "qwen3": tiny_qwen3}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model: PreTrainedModel = MODELS[request.param]().double().eval()
    with torch.no_grad():  # larger weights, so that effects are far above rounding
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


ROWS = [
    PromptRow("Ada sees the red dog near the", (" house", " tree"), 0, "Ada sees the old dog near the"),
    PromptRow("Bo likes a boat and", (" Max", " Nora"), 1, "Bo likes a lamp and"),
    PromptRow("the small cat was", (" red", " blue"), 0, "the large cat was"),
    PromptRow(
        "Finn paints the old green door in the quiet",
        (" park", " office"),
        1,
        "Eve paints the old green door in the quiet",
    ),
    PromptRow("He has", (" bread", " stone"), 0, "He had"),
]


class Plain:
    """The model, run row by row without padding."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.tokenizer = model, tiny_tokenizer()
        layers: Any = model.transformer.h if hasattr(model, "transformer") else model.model.layers
        block = layers[LAYER]
        attention, mlp = (block.attn, block.mlp) if hasattr(block, "attn") else (block.self_attn, block.mlp)
        gemma = hasattr(block, "post_feedforward_layernorm")
        self.at: dict[str, tuple[nn.Module, str]] = {
            "mlp_act": (mlp.c_proj if hasattr(mlp, "c_proj") else mlp.down_proj, "in"),
            "attn_z": (attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj, "in"),
            "mlp_out": (block.post_feedforward_layernorm if gemma else mlp, "out"),
            "attn_out": (block.post_attention_layernorm if gemma else attention, "out"),
            "resid_post": (block, "out"),
            "resid_pre": (block, "in"),
        }

    @contextmanager
    def edited(self, part: str, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """The vector of the last token, ``[d]``, replaced."""
        module, side = self.at[part]

        def changed(given: Any) -> Any:
            tensor = given[0] if isinstance(given, tuple) else given
            tensor = tensor.clone()
            tensor[0, -1] = edit(tensor[0, -1])
            return (tensor, *given[1:]) if isinstance(given, tuple) else tensor

        if side == "in":
            handle = module.register_forward_pre_hook(lambda _, args: changed(args))
        else:
            handle = module.register_forward_hook(lambda _, __, output: changed(output))
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def logits(self, prompt: str) -> Tensor:
        return self.model(input_ids=torch.tensor([self.tokenizer(prompt)["input_ids"]])).logits[0, -1]

    def seen(self, prompt: str, part: str) -> Tensor:
        found: list[Tensor] = []

        def note(vector: Tensor) -> Tensor:
            found.append(vector.clone())
            return vector

        with self.edited(part, note):
            self.logits(prompt)
        return found[0]


def objective_by_hand(name: str, logits: Tensor, row: PromptRow, clean: Tensor) -> float:
    ids = [VOCABULARY[text.strip()] for text in row.answers]
    log_probs, before = logits.log_softmax(-1), clean.log_softmax(-1)
    correct = ids[row.correct]
    others = torch.stack([logits[i] for i in ids if i != correct])
    return {
        "logit_diff": logits[correct] - others.mean(),
        "max": logits[correct] - others.max(),
        "logsumexp": logits[correct] - others.logsumexp(0),
        "log_prob": log_probs[correct],
        "prob": log_probs[correct].exp(),
        "kl": (before.exp() * (before - log_probs)).sum(),
    }[name].item()


class Dictionary:
    """A random dictionary with a linear decoder."""

    name, dashboard_url, skips_special_tokens = "coder", staticmethod(lambda: None), False

    def __init__(self, hook_point: str, width: int, error: bool, latents: int = 24) -> None:
        draw = torch.Generator().manual_seed(1)
        self.encoder = torch.randn(width, latents, generator=draw, dtype=torch.float64) / width**0.5
        self.decoder = torch.randn(latents, width, generator=draw, dtype=torch.float64) / latents**0.5
        self.hook_point = self.output_hook_point = hook_point
        self.d_in, self.d_sae, self.use_error_term = width, latents, error

    def encode(self, activations: Tensor) -> Tensor:
        return (activations @ self.encoder).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.decoder

    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.decoder[latents]


UNITS = {
    "neurons": (Neurons(LAYER), "mlp_act"),
    "heads": (Heads(LAYER), "attn_z"),
    "attn_out": (Vector(f"layers.{LAYER}.attn_out"), "attn_out"),
    "mlp_out": (Vector(f"blocks.{LAYER}.hook_mlp_out"), "mlp_out"),
    "resid_post": (Vector(f"layers.{LAYER}.resid_post"), "resid_post"),
    "resid_pre": (Vector(f"layers.{LAYER}.resid_pre"), "resid_pre"),
}


def members_of(kind: str, width: int) -> list[list[int]]:
    if kind == "neurons":
        return [[i] for i in range(width)]
    if kind == "heads":
        return torch.arange(width).reshape(4, -1).tolist()
    return [list(range(width))]


def check(model: PreTrainedModel, kind: str, name: str, value: Any, rows: list[PromptRow], **options: Any) -> None:
    units, part = UNITS[kind]
    named: dict[str, Any] = {"max": LogitDiff("max"), "logsumexp": {"logit_diff": {"against": "logsumexp"}}}
    objective = named.get(name, name)
    found = effects(model, tiny_tokenizer(), rows, units=units, objective=objective, value=value, **options)
    plain = Plain(model)
    width = len(plain.seen(rows[0].prompt, part))
    means = torch.stack([plain.seen(row.prompt, part) for row in rows]).mean(0)
    table = found.to_pandas().set_index(["row", "unit"]).effect
    expected = []
    for i, row in enumerate(rows):
        clean = plain.logits(row.prompt)
        before = objective_by_hand(name, clean, row, clean)
        assert found.rows().objective[i] == pytest.approx(before, abs=1e-10)
        given = {"mean": means, "zero": torch.zeros(width), "corrupted": None}.get(
            value, torch.full((width,), float(value) if value not in ("mean", "zero", "corrupted") else 0.0)
        )
        if value == "corrupted":
            given = plain.seen(row.corrupted, part)
        for unit, members in enumerate(members_of(kind, width)):

            def edit(vector: Tensor, members=members, given=given) -> Tensor:
                changed = vector.clone()
                changed[members] = given[members].to(vector)
                return changed

            with plain.edited(part, edit):
                after = objective_by_hand(name, plain.logits(row.prompt), row, clean)
            expected.append(before - after)
            assert table.get((i, unit), 0.0) == pytest.approx(before - after, abs=1e-10)
    assert max(map(abs, expected)) > 1e-4


PAIRS = [
    ("logit_diff", "neurons", "zero"),
    ("logit_diff", "heads", "corrupted"),
    ("logit_diff", "resid_post", "mean"),
    ("log_prob", "heads", "mean"),
    ("log_prob", "neurons", "corrupted"),
    ("prob", "heads", "zero"),
    ("prob", "mlp_out", "corrupted"),
    ("kl", "attn_out", "zero"),
    ("kl", "neurons", 0.5),
    ("max", "resid_pre", "corrupted"),
    ("logsumexp", "heads", 1.0),
]


@pytest.mark.parametrize(("name", "kind", "value"), PAIRS)
def test_effects_are_those_of_plain_loops(model, name, kind, value):
    rows = ROWS
    if name in ("max", "logsumexp"):
        rows = [it_row(row) for row in ROWS]
    check(model, kind, name, value, rows, batch_size=3)


def it_row(row: PromptRow) -> PromptRow:
    return PromptRow(row.prompt, (*row.answers, " cold" if row.correct else " apple", " ."), row.correct, row.corrupted)


# ------------------------------------------------------------------------------ several tokens, earlier tokens, latents

LONG = [
    PromptRow("Ada sees the red dog near the", (" old house", " old tree"), 0, "Ada sees the old dog near the"),
    PromptRow("Bo likes a boat and", (" Max", " Nora and Kit"), 1, "Bo likes a lamp and", {"what": "boat"}),
    PromptRow("He has", (" red bread today", " stone"), 0, "She had"),
]


def teacher_forced(plain: Plain, prompt: str, answer: str, part: str, position: int, edit: Any) -> Tensor:
    """Log-probability of an answer, one whole forward for it, with the vector at one token of the prompt edited."""
    ids, more = plain.tokenizer(prompt)["input_ids"], plain.tokenizer(answer, add_special_tokens=False)["input_ids"]
    module, side = plain.at[part]

    def changed(given: Any) -> Any:
        tensor = (given[0] if isinstance(given, tuple) else given).clone()
        tensor[0, position] = edit(tensor[0, position])
        return (tensor, *given[1:]) if isinstance(given, tuple) else tensor

    if side == "in":
        handle = module.register_forward_pre_hook(lambda _, args: changed(args))
    else:
        handle = module.register_forward_hook(lambda _, __, output: changed(output))
    with torch.no_grad():
        logits = plain.model(input_ids=torch.tensor([ids + more])).logits[0].log_softmax(-1)
    handle.remove()
    return sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(more))


def by_hand(name: str, plain: Plain, row: PromptRow, part: str, position: int, edit: Any) -> float:
    scores = [teacher_forced(plain, row.prompt, answer, part, position, edit) for answer in row.answers]
    correct = scores[row.correct]
    others = torch.stack([score for i, score in enumerate(scores) if i != row.correct])
    return {"logit_diff": correct - others.mean(), "log_prob": correct, "prob": correct.exp()}[name].item()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "positions", "rows"),
    [
        ("logit_diff", "answer", LONG),
        ("log_prob", "each", LONG),
        ("prob", "each", ROWS[:3]),
        ("logit_diff", "each", ROWS[:3]),
    ],
)
def test_answers_of_several_tokens_and_earlier_tokens(model, name, positions, rows, side):
    found = effects(
        model, tiny_tokenizer(side), rows, units=Heads(LAYER), objective=name, positions=positions, batch_size=2
    )
    plain, table = Plain(model), found.to_pandas().set_index(["row", "position", "unit"]).effect
    count = 0
    for i, row in enumerate(rows):
        length = len(plain.tokenizer(row.prompt)["input_ids"])
        clean = by_hand(name, plain, row, "attn_z", 0, lambda vector: vector)
        assert found.rows().objective[i] == pytest.approx(clean, abs=1e-10)
        for position in [length - 1] if positions == "answer" else range(length):
            for head in range(4):

                def edit(vector: Tensor, head=head) -> Tensor:
                    return vector * (torch.arange(len(vector)) // (len(vector) // 4) != head)

                after = by_hand(name, plain, row, "attn_z", position, edit)
                assert table.get((i, position, head), 0.0) == pytest.approx(clean - after, abs=1e-10)
                count += 1
    assert len(found.points()) * 4 == count


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("hook", ["resid_post", "mlp_out", "attn_z"])
def test_effects_of_latents_are_those_of_a_splice(model, hook, error):
    plain = Plain(model)
    coder = Dictionary(f"layers.{LAYER}.{hook}", len(plain.seen("He has", hook)), error)
    found = effects(model, tiny_tokenizer(), ROWS, units=[coder, Heads(0)], objective="log_prob", batch_size=2)
    table = found.to_pandas().query("units == 'coder'").set_index(["row", "unit"]).effect
    module, side = plain.at[hook]

    def spliced(row: PromptRow, latent: int | None) -> float:
        """All tokens reconstructed, a latent set to zero at the last one."""

        def changed(given: Any) -> Any:
            tensor = given[0] if isinstance(given, tuple) else given
            latents = coder.encode(tensor)
            before = coder.decode(latents)
            edited = latents.clone()
            if latent is not None:
                edited[0, -1, latent] = 0
            output = coder.decode(edited) + (tensor - before if error else 0)
            return (output, *given[1:]) if isinstance(given, tuple) else output

        if side == "in":
            handle = module.register_forward_pre_hook(lambda _, args: changed(args))
        else:
            handle = module.register_forward_hook(lambda _, __, output: changed(output))
        logits = plain.logits(row.prompt)
        handle.remove()
        return objective_by_hand("log_prob", logits, row, logits)

    for i, row in enumerate(ROWS):
        clean = spliced(row, None)
        assert found.rows().objective_spliced[i] == pytest.approx(clean, abs=1e-10)
        for latent in range(coder.d_sae):
            assert table.get((i, latent), 0.0) == pytest.approx(clean - spliced(row, latent), abs=1e-10)
    assert table.abs().max() > 1e-3


def test_gradient_effects_are_those_of_autograd(model):
    found = effects(
        model, tiny_tokenizer(), LONG, units=Neurons(LAYER), value="corrupted", method="gradient", positions="each"
    )
    plain, table = Plain(model), found.to_pandas().set_index(["row", "position", "unit"]).effect
    module = plain.at["mlp_act"][0]
    for i, row in enumerate(LONG):
        ids = plain.tokenizer(row.prompt)["input_ids"]
        total, seen = 0.0, []
        for j, answer in enumerate(row.answers):
            more = plain.tokenizer(answer, add_special_tokens=False)["input_ids"]

            def keep(_: Any, args: Any, seen: list[Tensor] = seen) -> None:
                args[0].retain_grad()
                seen.append(args[0])

            handle = module.register_forward_pre_hook(keep)
            logits = model(input_ids=torch.tensor([ids + more])).logits[0].log_softmax(-1)
            handle.remove()
            score = sum(logits[len(ids) - 1 + k, token] for k, token in enumerate(more))
            total = total + (score if j == row.correct else -score)
        total.backward()
        slope = sum(tensor.grad[0, : len(ids)] for tensor in seen)
        other: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args, other=other: other.append(args[0][0]))
        with torch.no_grad():
            model(input_ids=torch.tensor([plain.tokenizer(row.corrupted)["input_ids"]]))
        handle.remove()
        expected = (seen[0].detach()[0, : len(ids)] - other[0]) * slope
        for position in range(len(ids)):
            for unit in range(expected.shape[1]):
                assert table.get((i, position, unit), 0.0) == pytest.approx(expected[position, unit].item(), abs=1e-10)


def test_a_budget_is_for_the_largest_gradients_of_all_batches(model):
    rows = ROWS[:2]
    everything = effects(model, tiny_tokenizer(), rows, units=Neurons(LAYER), positions="each", batch_size=2)
    rough = effects(
        model, tiny_tokenizer(), rows, units=Neurons(LAYER), positions="each", batch_size=2, method="gradient"
    )
    some = effects(model, tiny_tokenizer(), rows, units=Neurons(LAYER), positions="each", batch_size=1, budget=30)
    names = ["row", "position", "unit"]
    exact, ranked, kept = (item.to_pandas().set_index(names).effect for item in (everything, rough, some))
    best = ranked.abs().sort_values(ascending=False).index
    assert set(kept.index) == set(best[:30])
    assert all(kept[index] == pytest.approx(exact[index], abs=1e-12) for index in kept.index)
    points = some.points()
    assert points.screened_out.sum() == len(exact) - 30
    assert points.largest_screened.max() == pytest.approx(abs(ranked[best[30]]))

"""Lenses, compared with plain loops over rows that use the modules of the models themselves."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

import interpretune as it
from interpretune.analysis import HuggingFaceBackend, ModelInputs
from interpretune.questions import Effects, Heads, LogitDiff, LogitLens, Neurons, PromptRow, Vector
from interpretune.testing.tiny_models import VOCABULARY, tiny_tokenizer
from tests.questions.test_effects import LONG, MODELS, SIZES, Dictionary
from tests.tiny_architectures import norms_in_float64

ROWS = [
    PromptRow("Ada sees the red dog near the", (" house", " tree"), 0),
    PromptRow("Bo likes a boat and", (" Max", " Nora", " Kit"), 1),
    PromptRow("He has", (" bread", " stone"), 1),
]
MEAN = LogitDiff("mean")


def tiny_gemma3() -> PreTrainedModel:
    """A cap so low that it bends the logits."""
    model = MODELS["gemma3"]()
    model.config.final_logit_softcapping = 0.5
    return model


def tiny_granite() -> PreTrainedModel:
    """What sublayers write, and logits, are multiplied by constants."""
    torch.manual_seed(0)
    sizes = {name: size for name, size in SIZES.items() if name != "head_dim"}
    return GraniteForCausalLM(GraniteConfig(**sizes, residual_multiplier=0.5, logits_scaling=4.0))


KINDS = {**MODELS, "gemma3": tiny_gemma3, "granite": tiny_granite}


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return ready(request.param)


@pytest.fixture(scope="module")
def plain(model: PreTrainedModel) -> list[Plain]:
    return [Plain(model, row) for row in ROWS]


@cache
def ready(kind: str) -> PreTrainedModel:
    model = KINDS[kind]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return norms_in_float64(model)


class Plain:
    """One row, run without padding, and the parts of its model."""

    def __init__(self, model: Any, row: PromptRow) -> None:
        self.model, self.seen = model, {}
        body = model.transformer if hasattr(model, "transformer") else model.model
        self.blocks, self.norm, self.head = getattr(body, "h", None) or body.layers, None, model.lm_head
        self.norm = body.ln_f if hasattr(body, "ln_f") else body.norm
        handles = [
            module.register_forward_hook(lambda _, args, output, key=key: self.keep(key, args, output))
            for layer, block in enumerate(self.blocks)
            for key, module in self.parts(layer, block).items()
        ]
        tokens = torch.tensor([tiny_tokenizer()(row.prompt)["input_ids"]])
        with torch.no_grad():
            self.logits = model(input_ids=tokens).logits[0, -1]
        for handle in handles:
            handle.remove()
        ids = [VOCABULARY[text.strip()] for text in row.answers]
        others = [i for i in ids if i != ids[row.correct]]
        self.correct, self.answers = ids[row.correct], ids
        self.objective = self.difference(self.logits, others)
        self.others = others
        weight = self.head.weight.detach()
        self.direction = weight[self.correct] - weight[others].mean(0)
        self.stream = self.seen[len(self.blocks) - 1, "block"][1]

    def keep(self, key: Any, args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        self.seen[key] = (args[0][0, -1].clone() if args else None, output[0, -1].clone())

    @staticmethod
    def parts(layer: int, block: Any) -> dict[Any, nn.Module]:
        attention = block.attn if hasattr(block, "attn") else block.self_attn
        found = {(layer, "block"): block, (layer, "attn"): attention, (layer, "mlp"): block.mlp}
        found[layer, "o"] = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
        found[layer, "down"] = block.mlp.c_proj if hasattr(block.mlp, "c_proj") else block.mlp.down_proj
        if hasattr(block, "post_feedforward_layernorm"):
            found[layer, "norm attn"], found[layer, "norm mlp"] = (
                block.post_attention_layernorm,
                block.post_feedforward_layernorm,
            )
        return found

    def difference(self, logits: Tensor, others: list[int] | None = None) -> float:
        return (logits[self.correct] - logits[others or self.others].mean()).item()

    @staticmethod
    def held(norm: Any, read: Tensor, vector: Tensor) -> Tensor:
        """A vector through a norm that has the scale of what it really read."""
        if isinstance(norm, nn.LayerNorm):
            scale = (read.var(unbiased=False) + norm.eps).sqrt()
            return (vector - vector.mean()) / scale * norm.weight
        eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
        return vector / (read.square().mean() + eps).sqrt() * weight

    def added(self, layer: int, part: str, vector: Tensor) -> Tensor:
        """What becomes of what a sublayer writes, before it is added to the stream."""
        key = (layer, f"norm {part}")
        if key in self.seen:
            vector = self.held(self.parts(layer, self.blocks[layer])[key], self.seen[key][0], vector)
        return vector * getattr(self.model.config, "residual_multiplier", 1.0)

    @torch.no_grad()
    def contribution(self, vector: Tensor) -> tuple[float, float]:
        """Of a vector in the stream, with the scale of the forward, and alone."""
        scaling = getattr(self.model.config, "logits_scaling", 1.0)
        alone = self.norm(vector) - self.norm(torch.zeros_like(vector))
        both = (self.held(self.norm, self.stream, vector), alone)
        return tuple((item @ self.direction / scaling).item() for item in both)

    def written(self, layer: int, part: str) -> tuple[Tensor, Tensor]:
        """What each coordinate that a last projection reads writes, ``[width, d]``, and the projection's bias."""
        name = "o" if part == "attn" else "down"
        module: Any = self.parts(layer, self.blocks[layer])[layer, name]
        weight = module.weight.detach() if type(module).__name__ == "Conv1D" else module.weight.detach().T
        bias = torch.zeros(weight.shape[1]).double() if module.bias is None else module.bias.detach()
        return self.seen[layer, name][0].unsqueeze(-1) * weight, bias

    @property
    def bias(self) -> float:
        bias = getattr(self.norm, "bias", None)
        return 0.0 if bias is None else (bias.detach() @ self.direction).item()

    def before_cap(self) -> float:
        """The unembedding of what the last norm makes, without a cap."""
        with torch.no_grad():
            raw = self.head(self.norm(self.stream)) / getattr(self.model.config, "logits_scaling", 1.0)
        return self.difference(raw)


def asked(model: Any, units: Any, side: str = "left", batch_size: int = 8) -> Effects:
    return it.direct_logit_attribution(
        model, tiny_tokenizer(side), ROWS, units=units, objective=MEAN, batch_size=batch_size
    )


def lines(found: Any, *index: str) -> dict[Any, dict[str, Any]]:
    return found.to_pandas().set_index(list(index)).to_dict("index")


NOTHING = {"effect": 0.0, "alone": 0.0}
"""Units that write exactly nothing have no line."""
BATCHES = [("left", 8), ("right", 2)]
"""The second of the latter has one row."""


def test_contributions_are_those_of_plain_loops(model, plain):
    expected, rests = [], []
    for one in plain:
        parts, rest = {("layers.0.resid_pre", 0): one.contribution(one.seen[0, "block"][0])}, 0.0
        for layer in range(len(one.blocks)):
            for part, name in (("attn", "attn_z"), ("mlp", "mlp_act")):
                written, bias = one.written(layer, part)
                groups = written.unflatten(0, (4, -1)).sum(1) if part == "attn" else written
                for unit, vector in enumerate(groups):
                    parts[f"layers.{layer}.{name}", unit] = one.contribution(one.added(layer, part, vector))
                rest += one.contribution(one.added(layer, part, bias))[0]
        expected.append(parts)
        rests.append(rest)
    for side, batch_size in BATCHES:
        found = asked(model, [Vector("layers.0.resid_pre"), Heads(), Neurons()], side, batch_size)
        table, rows = lines(found, "row", "units", "unit"), found.rows()
        for i, one in enumerate(plain):
            got = {key: table.get((i, *key), NOTHING) for key in expected[i]}
            effects, alone = zip(*expected[i].values(), strict=True)
            assert [line["effect"] for line in got.values()] == pytest.approx(effects, abs=1e-10)
            assert [line["alone"] for line in got.values()] == pytest.approx(alone, abs=1e-7, rel=1e-7)
            assert rows.objective[i] == pytest.approx(one.objective, abs=1e-10)
            assert rows.before_cap[i] == pytest.approx(one.before_cap(), abs=1e-10)
            assert rows.bias[i] == pytest.approx(one.bias, abs=1e-10)
            assert rows.rest[i] == pytest.approx(rests[i], abs=1e-10)
            whole = sum(line["effect"] for line in got.values()) + rows.bias[i] + rows.rest[i]
            assert whole == pytest.approx(one.before_cap(), abs=1e-10)


def test_embedding_and_sublayers_sum_to_the_difference(model, plain):
    found = asked(model, None)
    rows, sums = found.rows(), found.to_pandas().groupby("row").effect.sum()
    assert len(found.question["units"]) == 1 + 2 * SIZES["num_hidden_layers"]
    assert rows.rest.abs().max() < 1e-10
    capped = getattr(model.config, "final_logit_softcapping", None) is not None
    for i, one in enumerate(plain):
        assert sums[i] + rows.bias[i] == pytest.approx(one.before_cap(), abs=1e-10)
        assert (abs(rows.before_cap[i] - rows.objective[i]) > 1e-4) == capped
    assert found.top(1)["mean_size"][0] > 1e-3
    assert "straight to the logits" in repr(found)


def test_latents_contribute_what_their_decoders_write(model, plain):
    for hook in ("resid_post", "mlp_out", "attn_z"):
        mlp = "norm mlp" if (1, "norm mlp") in plain[0].seen else "mlp"
        key, side = {"resid_post": ("block", 1), "mlp_out": (mlp, 1), "attn_z": ("o", 0)}[hook]
        coder = Dictionary(f"layers.1.{hook}", len(plain[0].seen[1, key][side]), error=True)
        table = lines(asked(model, coder), "row", "unit")
        for i, one in enumerate(plain):
            latents = coder.encode(one.seen[1, key][side])
            for latent in range(coder.d_sae):
                vector = latents[latent] * coder.decoder[latent]
                if hook == "attn_z":
                    weight = one.parts(1, one.blocks[1])[1, "o"].weight.detach()
                    vector = one.added(1, "attn", vector @ (weight if hasattr(model, "transformer") else weight.T))
                elif hook == "mlp_out":
                    vector = vector * getattr(model.config, "residual_multiplier", 1.0)
                effect, alone = one.contribution(vector)
                line = table.get((i, latent), NOTHING)
                assert line["effect"] == pytest.approx(effect, abs=1e-10)
                assert line["alone"] == pytest.approx(alone, abs=1e-7, rel=1e-7)


def test_layers_are_read_by_the_models_norm_and_unembedding(model, plain):
    cap, scaling = (getattr(model.config, n, None) for n in ("final_logit_softcapping", "logits_scaling"))

    def logits_of(one: Plain, normed: Tensor) -> Tensor:
        with torch.no_grad():
            raw = one.head(normed) / (scaling or 1.0)
        return raw if cap is None else cap * (raw / cap).tanh()

    for side, batch_size in BATCHES:
        found = it.logit_lens(model, tiny_tokenizer(side), ROWS, objective=MEAN, batch_size=batch_size)
        table = lines(found, "row", "units")
        for i, one in enumerate(plain):
            layers = {"layers.0.resid_pre": one.seen[0, "block"][0]}
            layers |= {f"layers.{n}.resid_post": one.seen[n, "block"][1] for n in range(len(one.blocks))}
            for name, stream in layers.items():
                line, logits = table[i, name], logits_of(one, one.norm(stream))
                held = one.held(one.norm, one.stream, stream) + getattr(one.norm, "bias", torch.zeros(1).double())
                assert line["objective"] == pytest.approx(one.difference(logits), abs=1e-10)
                assert line["scale_held"] == pytest.approx(one.difference(logits_of(one, held)), abs=1e-10)
                assert line["rank"] == 1 + (logits > logits[one.correct]).sum()
                answers = list(line["logits"][: len(one.answers)])
                assert answers == pytest.approx(logits[one.answers].tolist(), abs=1e-10)
            assert line["objective"] == pytest.approx(one.objective, abs=1e-10)
            assert answers == pytest.approx(one.logits[one.answers].tolist(), abs=1e-10)
    summary = found.layers()
    assert list(summary.units) == list(layers)
    assert summary.share_correct.iloc[-1] == pytest.approx(found.share_correct)
    assert [len(line.x) for line in found.plot().data] == [4, 4]


def test_answers_of_several_tokens_and_divergences_by_layer():
    model, tokenizer = ready("gemma3"), tiny_tokenizer()
    lens = it.logit_lens(model, tokenizer, LONG, objective="log_prob").to_pandas().set_index(["row", "units"])
    away = it.logit_lens(model, tokenizer, LONG, objective="kl").to_pandas().set_index(["row", "units"]).objective
    for i, row in enumerate(LONG):
        ids = tokenizer(row.prompt)["input_ids"]
        sums, after = [], []
        for answer in row.answers:
            more = tokenizer(answer, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                states = model(input_ids=torch.tensor([ids + more]), output_hidden_states=True).hidden_states
                read, last = (model.lm_head(x)[0] for x in (model.model.norm(states[1]), states[-1]))
                read, last = (model.config.final_logit_softcapping * (x / 0.5).tanh() for x in (read, last))
                read, last = read.log_softmax(-1), last.log_softmax(-1)
            sums.append(sum(read[len(ids) - 1 + k, token].item() for k, token in enumerate(more)))
            after = [read[len(ids) - 1], last[len(ids) - 1]]
        line = lens.loc[(i, "layers.0.resid_post")]
        assert line.objective == pytest.approx(sums[row.correct], abs=1e-10)
        assert list(line.logits[: len(sums)]) == pytest.approx(sums, abs=1e-10)
        first = tokenizer(row.answers[row.correct], add_special_tokens=False)["input_ids"][0]
        assert line["rank"] == 1 + (after[0] > after[0][first]).sum()
        kl = (after[1].exp() * (after[1] - after[0])).sum().item()
        assert away[i, "layers.0.resid_post"] == pytest.approx(kl, abs=1e-10)
        assert away[i, "layers.2.resid_post"] == pytest.approx(0, abs=1e-10)


def test_stores_of_lenses_are_opened_as_what_they_are(tmp_path: Path):
    model, tokenizer = ready("llama"), tiny_tokenizer()
    lens = it.logit_lens(model, tokenizer, ROWS, objective=MEAN, store=tmp_path / "lens")
    direct = it.direct_logit_attribution(model, tokenizer, ROWS, objective=MEAN, store=tmp_path / "direct")
    assert LogitLens.open(tmp_path / "lens").layers().equals(lens.layers())
    assert Effects.open(tmp_path / "direct").top().equals(direct.top())
    with pytest.raises(it.StoreError, match="no Effects, but the results of a question of method lens"):
        Effects.open(tmp_path / "lens")
    assert list(direct.points().columns) == ["row", "position", "token"]


class AcrossLayers(Dictionary):
    """Reads at one MLP, and writes at two."""

    def __init__(self, outputs: tuple[str, ...] = ("layers.1.mlp_out", "layers.2.mlp_out")) -> None:
        super().__init__("layers.1.mlp_in", 32, error=False)
        self.decoder = torch.cat([self.decoder, self.decoder.flip(1)], dim=1)
        self.hook_points, self.output_hook_points = ("layers.1.mlp_in",), outputs
        self.output_hook_point = outputs[0]


def test_all_outputs_of_a_dictionary_count():
    model = ready("granite")
    coder, names = AcrossLayers(), ["layers.1.mlp_in"]
    table = lines(asked(model, coder), "row", "unit")
    for i, row in enumerate(ROWS):
        one, tokens = Plain(model, row), torch.tensor([tiny_tokenizer()(row.prompt)["input_ids"]])
        inputs = ModelInputs(tokens, torch.ones_like(tokens))
        latents = coder.encode(HuggingFaceBackend(model).capture(inputs, names)["layers.1.mlp_in"][0, -1])
        for latent in range(coder.d_sae):
            first, second = (latents[latent] * coder.decoder[latent]).split(32)
            effect, alone = one.contribution(0.5 * (first + second))
            line = table.get((i, latent), NOTHING)
            assert line["effect"] == pytest.approx(effect, abs=1e-10)
            assert line["alone"] == pytest.approx(alone, abs=1e-7, rel=1e-7)
    with pytest.raises(it.AnalysisError, match="2 hook points, one of them layers.1.resid_post"):
        asked(model, AcrossLayers(("layers.1.resid_post", "layers.2.mlp_out")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "log_prob"}, "not linear in the logits.*LogitDiff"),
        ({"objective": LogitDiff("logsumexp")}, "not linear in the logits"),
        ({"prompts": LONG}, "answer of several tokens"),
        ({"units": Vector("layers.0.mlp_in")}, "mlp_in is not written into the residual stream"),
        ({"units": Heads(9)}, "no heads of layer 9"),
    ],
)
def test_what_does_not_go_straight_is_refused(change, message):
    asked = {"prompts": ROWS, "objective": MEAN, **change}
    with pytest.raises(it.InterpretuneError, match=message):
        it.direct_logit_attribution(ready("llama"), tiny_tokenizer(), **asked)


@pytest.mark.parametrize(
    ("rows", "objective", "message"),
    [
        (ROWS, "loss", "The objective loss is of tokens all over the row.* Ask for log_prob or kl"),
        ([*ROWS[:1], it.PromptRow("He has")], "kl", "Row 1 has no answers, and the logit lens ranks the correct one"),
    ],
)
def test_what_has_no_layers_is_refused(rows, objective, message):
    with pytest.raises(it.InterpretuneError, match=message):
        it.logit_lens(ready("llama"), tiny_tokenizer(), rows, objective=objective)


def test_a_decoder_that_is_not_linear_is_refused():
    coder: Any = Dictionary("layers.1.resid_post", 32, error=True)
    coder.decoder_rows = lambda latents: None
    with pytest.raises(it.AnalysisError, match="'coder' does not say that its decoder is linear"):
        asked(ready("llama"), coder)


def test_a_norm_of_another_kind_is_refused():
    model: Any = ready.__wrapped__("llama")
    model.model.norm = nn.Sequential(nn.Linear(32, 32), nn.Tanh()).double()
    with pytest.raises(it.AnalysisError, match="neither a layer norm nor one by root mean square"):
        asked(model, None)

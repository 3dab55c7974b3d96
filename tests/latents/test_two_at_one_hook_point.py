"""Two dictionaries that read at one hook point, told apart by an alias."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, ablate, activation_name, run_analysis
from interpretune.backends.identity import identify_latents
from interpretune.errors import HookPointError, LatentModelError
from interpretune.questions import effects
from interpretune.questions.written_units import written_units
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer
from tests.latents.test_several_hook_points import row_of, some_rows
from tests.replay.ablated_rows import ATOL, rows_of
from tests.sessions import make_session
from tests.tiny_architectures import backend_of, batch_of, make_model
from tests.tiny_latents import RandomDictionary, hooked

PLACE = "blocks.1.hook_resid_post"


class Named(RandomDictionary):
    """A dictionary with an alias, in float64, whose decoder is declared linear."""

    def __init__(self, hook_point: str, alias: str | None, *, error: bool = True, **settings: Any) -> None:
        super().__init__(hook_point, **settings)
        self.double().requires_grad_(False)
        self.name, self.alias, self.use_error_term = alias or "unnamed", alias, error

    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.w_dec[latents]


def pair(*, error: bool = True, output: str | None = None) -> list[Named]:
    sizes = {"narrow": 20, "wide-2": 28}
    return [Named(PLACE, name, error=error, output=output, d_sae=n, seed=n) for name, n in sizes.items()]


@cache
def backend() -> Any:
    return backend_of(make_model("llama"))


@pytest.mark.parametrize(("method", "positions"), [("exact", "answer"), ("exact", "each"), ("gradient", "answer")])
def test_effects_of_each_equal_those_of_each_alone(method: Any, positions: str) -> None:
    model, tokenizer = tiny_llama().double().eval(), tiny_tokenizer()
    items, above = pair(), Named("blocks.2.hook_resid_post", None)

    def found(*units: Any) -> Any:
        asked = [*units, above]
        rows = ["Ada sees the red dog", "He has"]
        got = effects(
            model, tokenizer, rows, [" house", " tree"], correct=0, units=asked, method=method, positions=positions
        )
        table = got.to_pandas()
        return table[table.units != above.name].set_index(["row", "position", "units", "unit"]).effect.sort_index()

    both = found(*items)
    for item in items:
        mine, alone = both.xs(item.name, level="units"), found(item).xs(item.name, level="units")
        assert list(mine.index) == list(alone.index)
        torch.testing.assert_close(torch.tensor(mine.to_numpy()), torch.tensor(alone.to_numpy()), rtol=0, atol=1e-10)
        assert alone.abs().max() > 1e-3


@pytest.mark.parametrize("writes", [None, "blocks.1.hook_mlp_out"])
def test_without_error_terms_autoencoders_stand_in_turn_and_transcoders_add_up(writes: str | None) -> None:
    own, inputs = backend(), batch_of((7, 3), "left")
    items = pair(error=False, output=writes)
    if writes:
        for item in items:
            item.hook_point = "blocks.1.hook_resid_pre"
    prefill = own.prefill(inputs, items)
    rows = some_rows(prefill)

    @torch.no_grad()
    def plain(point: int, sets: Any) -> Tensor:
        tokens, at = row_of(inputs, prefill.points, point)
        parts: list[Tensor] = []

        def latents_of(item: Named, x: Tensor) -> Tensor:
            latents = torch.relu(x @ item.w_enc + item.b_enc)
            for latent, value in sets.get(f"{item.hook_point}.{item.alias}.hook_sae_acts_post", {}).items():
                latents[0, at, latent] = value
            return latents @ item.w_dec + item.b_dec

        def in_turn(x: Tensor) -> Tensor:
            return latents_of(items[1], latents_of(items[0], x))

        def read(x: Tensor) -> Tensor:
            parts[:] = [latents_of(item, x) for item in items]
            return x

        hooks = [(PLACE, in_turn)]
        if writes:
            hooks = [(items[0].hook_point, read), (writes, lambda _: parts[0] + parts[1])]
        with hooked(own.model, hooks):
            return own.model(input_ids=tokens.unsqueeze(0)).logits[0, at]

    clean = torch.stack([plain(point, {}) for point in range(2)])
    torch.testing.assert_close(own.run_spliced(inputs, items).answer_logits, clean, rtol=0, atol=ATOL)
    wanted = torch.stack([plain(*row) for row in rows])
    for naive in (False, True):
        torch.testing.assert_close(ablate(prefill, rows_of(rows), naive=naive), wanted, rtol=0, atol=ATOL)
    assert prefill.kept is not None


def test_analyses_of_a_session_store_both(tmp_path: Any) -> None:
    items = pair()
    for item in items:
        item.float()
    session = make_session(tmp_path, "llama", "core", latent_models=items)
    names = list(map(activation_name, items))
    assert names == [f"{PLACE}.narrow.hook_sae_acts_post", f"{PLACE}.wide-2.hook_sae_acts_post"]
    found = run_analysis(**session, analysis_cfg=AnalysisCfg(mode=AnalysisMode.ablation))
    assert [list(batch) for batch in found.effects] == [names] * len(found.effects)
    alone = make_session(tmp_path / "alone", "llama", "core", latent_models=items[1:])
    other = run_analysis(**alone, analysis_cfg=AnalysisCfg(mode=AnalysisMode.ablation))
    for both, one in zip(found.effects, other.effects, strict=True):
        assert torch.equal(both[names[1]].latents, one[names[1]].latents)
        torch.testing.assert_close(both[names[1]].values, one[names[1]].values, rtol=0, atol=1e-5)
    it.it_session_end(**session)
    it.it_session_end(**alone)


def test_they_are_known_by_their_names() -> None:
    items = pair()
    assert written_units({"latents": "wide-2"}, items)[0].latent_model is items[1]
    assert identify_latents(items[0]).about["name"] == f"{PLACE}.narrow.hook_sae_acts_post"
    plain = Named(PLACE, None)
    assert activation_name(plain) == f"{PLACE}.hook_sae_acts_post"
    backend().check_latent_models([plain, *items])  # one of them may do without


def test_those_that_cannot_be_told_apart_are_refused() -> None:
    one, other = pair()
    other.alias = one.alias
    with pytest.raises(HookPointError, match=r"'narrow' and 'wide-2' both read at blocks\.1.*attribute alias"):
        backend().check_latent_models([one, other])
    for wrong in ("a.b", "1st", 7, "with space"):
        other.alias = wrong  # type: ignore[assignment]
        with pytest.raises(LatentModelError, match="alias of the latent model 'wide-2' is"):
            backend().check_latent_models([one, other])

"""SAEs from a configuration, from disk and published; those that do not fit are refused when the session is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

import interpretune as it
from interpretune import ConfigurationError, HookPointError, LatentModelError
from interpretune.analysis import AnalysisCfg, AnalysisMode, LatentModel, ModelInputs, run_analysis
from interpretune_saelens import (
    SAELensCustomConfig,
    SAELensFromDiskConfig,
    SAELensFromPretrainedConfig,
)
from interpretune_saelens.loading import find_saes
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig
from tests.sessions import make_session, padded, plain_model, unpadded_rows
from tests.tiny_latents import last_logits, splice_hooks

PLACE = "blocks.1.hook_resid_post"


def config(hook: str = PLACE, d_in: int = 32, d_sae: int = 24, **metadata: Any) -> StandardSAEConfig:
    reshape = "hook_z" if hook.endswith("hook_z") else "none"  # as published SAEs of heads have it
    cfg = StandardSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", reshape_activations=reshape)
    cfg.metadata.hook_name = hook
    for name, value in metadata.items():
        cfg.metadata[name] = value
    return cfg


def random_sae(hook: str = PLACE, seed: int = 0, **metadata: Any) -> StandardSAE:
    """All weights random: a fresh SAE has a tied decoder and biases of zero."""
    sae = StandardSAE(config(hook, **metadata))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 5)
    return sae


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(name: str = "sae", **options: Any) -> Path:
        random_sae(**options).save_model(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all sessions: model and prepared data are made once."""
    return tmp_path_factory.mktemp("saelens")


Make = Callable[..., it.ITSession]


MODELS = ["huggingface", "bridge", "hooked"]
on_every_model = pytest.mark.parametrize("model_kind", MODELS)


@pytest.fixture
def model_kind() -> str:
    """Where it makes no difference, for tests that do not choose it."""
    return "huggingface"


@pytest.fixture
def make(model_kind: str, folder: Path) -> Make:
    def make(*sae_cfgs: Any, **settings: Any) -> it.ITSession:
        model = "core"  # TransformerLens by default
        if model_kind == "huggingface":
            model = "huggingface"
        else:
            settings["tl_cfg"] = ITLensFromPretrainedNoProcessingConfig(use_bridge=model_kind == "bridge")
        return make_session(folder, "gpt2", adapters=(model, "sae_lens"), sae_cfgs=list(sae_cfgs), **settings)

    return make


def spliced(session: it.ITSession, rows: Sequence[Tensor], side: str = "left") -> Tensor:
    inputs = ModelInputs.from_batch(padded(rows, side, session.datamodule.tokenizer.pad_token_id))
    with torch.no_grad():
        return session.module.backend.run_spliced(inputs, session.module.latent_models).answer_logits


# ------------------------------------------------------------------------------------------------------------- sources


def test_custom_configurations_give_saes_that_their_seeds_fix(make: Make) -> None:
    before = torch.get_rng_state()
    as_dict = {**config().to_dict(), "architecture": "standard"}
    weights = [
        make(SAELensCustomConfig(cfg=cfg, seed=seed), init=False).module.latent_models[0].sae.W_enc
        for cfg, seed in ((config(), 1), (as_dict, 1), (config(), 2))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


@on_every_model
def test_saes_from_disk_are_those_that_were_saved(make: Make, saved: Callable[..., Path]) -> None:
    session = make(SAELensFromDiskConfig(path=saved(seed=5)), init=False)
    (found,) = session.module.latent_models
    assert isinstance(found, LatentModel)
    for name, parameter in random_sae(seed=5).named_parameters():
        assert torch.equal(dict(found.sae.named_parameters())[name], parameter)
    assert (found.hook_point, found.output_hook_point, found.d_in, found.d_sae) == (PLACE, PLACE, 32, 24)
    assert not found.skips_special_tokens
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not found.training


def test_special_tokens_follow_metadata_unless_the_configuration_says_otherwise(
    make: Make, saved: Callable[..., Path]
) -> None:
    trained = saved("trained", interpretune_skips_special_tokens=True)
    excluded = saved("excluded", exclude_special_tokens=True)
    assert make(SAELensFromDiskConfig(path=excluded), init=False).module.latent_models[0].skips_special_tokens
    plain = saved("plain", hook="blocks.0.hook_resid_post")
    skips = [
        [item.skips_special_tokens for item in make(*cfgs, init=False).module.latent_models]
        for cfgs in (
            (SAELensFromDiskConfig(path=trained), SAELensFromDiskConfig(path=plain)),
            (
                SAELensFromDiskConfig(path=trained, skips_special_tokens=False),
                SAELensFromDiskConfig(path=plain, skips_special_tokens=True),
            ),
        )
    ]
    assert skips == [[True, False], [False, True]]


def test_a_release_offline_points_to_folders(make: Make) -> None:
    with pytest.raises(LatentModelError, match=r"'blocks\.9\.hook_z' of 'gpt2-small-hook-z-kk'.*SAELensFromDiskConfig"):
        make(SAELensFromPretrainedConfig(release="gpt2-small-hook-z-kk", sae_id="blocks.9.hook_z"), init=False)


def test_an_unknown_release_is_answered_with_similar_names(make: Make) -> None:
    with pytest.raises(LatentModelError, match=r"(?s)cannot be loaded.*similar names: .*gpt2-small-hook-z-kk"):
        make(SAELensFromPretrainedConfig(release="gpt2-small-hook-z-k", sae_id="blocks.9.hook_z"), init=False)


def test_an_unknown_sae_of_a_release_is_answered_with_near_ids(make: Make) -> None:
    with pytest.raises(LatentModelError, match=r"has no SAE 'blocks\.9\.hook_zz'.*blocks\.9\.hook_z\b"):
        make(SAELensFromPretrainedConfig(release="gpt2-small-hook-z-kk", sae_id="blocks.9.hook_zz"), init=False)


def test_damaged_and_missing_folders_are_refused(make: Make, saved: Callable[..., Path], tmp_path: Path) -> None:
    weights = saved("short") / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200])
    (saved("no-cfg") / "cfg.json").write_text("{not json")
    for name in ("short", "no-cfg", "absent"):
        with pytest.raises(LatentModelError, match=f"No SAE can be loaded from .*{name}"):
            make(SAELensFromDiskConfig(path=tmp_path / name), init=False)


def test_a_configuration_that_describes_no_sae_is_refused(make: Make) -> None:
    for wrong in ({"architecture": "standard", "d_sae": 4}, {**config().to_dict(), "architecture": "unheard-of"}):
        with pytest.raises(LatentModelError, match="does not describe an SAE"):
            make(SAELensCustomConfig(cfg=wrong), init=False)
    with pytest.raises(ConfigurationError, match=r"sae_cfgs is \['blocks.9.hook_z'\] .*takes Sequence\[SAELensFrom"):
        make("blocks.9.hook_z", init=False)


def test_a_folder_of_saes_is_searched_by_layer(saved: Callable[..., Path], tmp_path: Path) -> None:
    two, ten = saved("z/b", hook="blocks.2.hook_mlp_out"), saved("a", hook="blocks.10.hook_resid_post")
    assert [Path(cfg.path) for cfg in find_saes(str(tmp_path), [10, 2])] == [ten, two]
    with pytest.raises(LatentModelError, match="no SAEs for layer 1; it has"):
        find_saes(str(tmp_path), [1])
    assert [Path(cfg.path) for cfg in find_saes(str(tmp_path), ids=["z/b"])] == [two]
    assert {Path(cfg.path) for cfg in find_saes(str(tmp_path))} == {two, ten}
    with pytest.raises(LatentModelError, match=r"no SAE .*c'. Nearest of its 2"):
        find_saes(str(tmp_path), ids=["c"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LatentModelError, match="has no SAEs: no folder"):
        find_saes(str(tmp_path / "empty"))
    saved("c", hook="blocks.2.hook_resid_post")
    with pytest.raises(LatentModelError, match="2 SAEs for layer 2"):
        find_saes(str(tmp_path), [2])


def test_a_release_is_searched_by_layer() -> None:
    found = find_saes("gpt2-small-hook-z-kk", [9, 10])
    assert [(cfg.release, cfg.sae_id) for cfg in found] == [
        ("gpt2-small-hook-z-kk", "blocks.9.hook_z"),
        ("gpt2-small-hook-z-kk", "blocks.10.hook_z"),
    ]
    with pytest.raises(LatentModelError, match=r"neither a folder here nor a release .*gpt2-small-hook-z-kk"):
        find_saes("gpt2-small-hook-z-k", [9])


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        (config(d_in=48), HookPointError, r"reads 48 numbers at blocks\.1\.hook_resid_post, where this model has 32"),
        (config("blocks.11.hook_resid_post"), HookPointError, r"no hook point 'blocks\.11\.hook_resid_post'"),
        (config("blocks.1.hook_resid_posts"), HookPointError, r"Nearest: .*blocks\.1\.hook_resid_post"),
        (config("blocks.1.attn.hook_z", d_in=8, hook_head_index=2), LatentModelError, "reads the single head 2"),
        (config(""), LatentModelError, "does not say at which hook point it stands"),
    ],
    ids=["width", "layer", "name", "head", "nowhere"],
)
def test_saes_that_do_not_fit_are_refused_when_the_session_is_made(
    make: Make, cfg: StandardSAEConfig, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(SAELensCustomConfig(cfg=cfg), init=False)


# ----------------------------------------------------------------------------------------------- what splicing computes


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("hook", "side", "model_kind"),
    [
        (hook, ("left", "right")[(i + j) % 2], model)
        for i, hook in enumerate([PLACE, "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"])
        for j, model in enumerate(MODELS)
    ],
)
def test_spliced_logits_are_those_of_saelens(make: Make, saved: Callable[..., Path], hook: str, side: str) -> None:
    """SAELens's own transformer, one unpadded row at a time."""
    width = 64 if hook.endswith("mlp.hook_post") else 32
    session = make(SAELensFromDiskConfig(path=saved(hook=hook, seed=7, d_in=width)))
    rows = [tokens for tokens, _ in unpadded_rows(session)[:3]]
    found = spliced(session, rows, side)
    wanted = with_saelens(session, rows, random_sae(hook, seed=7, d_in=width))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    with torch.no_grad():
        clean = torch.stack([last_logits(plain_model("gpt2"), row) for row in rows])
    assert (wanted - clean).abs().max() > 0.05


def with_saelens(session: it.ITSession, rows: Sequence[Tensor], sae: StandardSAE) -> Tensor:
    own = saelens_transformer(Path(session.session_cfg.shared_cfg.cache_dir).parent)
    with torch.no_grad():
        return torch.stack(
            [own.run_with_saes(row.unsqueeze(0), saes=[sae], use_error_term=False)[0, -1] for row in rows]
        )


@cache
def saelens_transformer(folder: Path) -> HookedSAETransformer:
    tl_cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=False)
    hooked = make_session(folder, "gpt2", adapters=("transformer_lens",), init=False, tl_cfg=tl_cfg).module.model
    own = HookedSAETransformer(hooked.cfg, hooked.tokenizer)
    own.load_state_dict(hooked.state_dict(), strict=False)
    return own.eval()


@on_every_model
def test_a_topk_sae_is_spliced_as_it_encodes(make: Make, tmp_path: Path) -> None:
    cfg = TopKSAEConfig(d_in=32, d_sae=24, k=5, dtype="float32", device="cpu")
    cfg.metadata.hook_name = PLACE
    sae = TopKSAE(cfg)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 5)
    sae.save_model(tmp_path / "topk")
    session = make(SAELensFromDiskConfig(path=tmp_path / "topk"))
    rows = [tokens for tokens, _ in unpadded_rows(session)[:3]]
    item = PlainSAE(sae)
    with torch.no_grad():
        wanted = torch.stack(
            [last_logits(plain_model("gpt2"), row, splice_hooks([item], row, (), lambda _, x: x)) for row in rows]
        )
    torch.testing.assert_close(spliced(session, rows), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


class PlainSAE:
    """A SAELens object with the names that the references use."""

    skips_special_tokens = False

    def __init__(self, sae: Any) -> None:
        self.hook_point = self.output_hook_point = sae.cfg.metadata.hook_name
        self.encode, self.decode = sae.encode, sae.decode


@on_every_model
def test_splicing_a_z_sae_leaves_the_shape_of_z(make: Make, saved: Callable[..., Path]) -> None:
    session = make(SAELensFromDiskConfig(path=saved(hook="blocks.1.attn.hook_z")))
    rows = [tokens for tokens, _ in unpadded_rows(session)[:2]]
    inputs = ModelInputs.from_batch(padded(rows, "left", 0))
    before = session.module.backend.capture(inputs, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]
    first, second = spliced(session, rows), spliced(session, rows)
    assert torch.equal(first, second)
    after = session.module.backend.capture(inputs, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]
    assert before.shape == (2, max(map(len, rows)), 32)
    assert torch.equal(before, after)


def test_published_pages_follow_the_results(make: Make, saved: Callable[..., Path]) -> None:
    lower = saved("lower", hook="blocks.0.hook_resid_post", neuronpedia_id="gpt2-small/0-res-jb")
    session = make(SAELensFromDiskConfig(path=lower), SAELensFromDiskConfig(path=saved("upper", seed=1)))
    cache = run_analysis(session.module, session.datamodule, AnalysisCfg(mode=AnalysisMode.clean_w_sae))
    page = {"blocks.0.hook_resid_post.hook_sae_acts_post": "https://www.neuronpedia.org/gpt2-small/0-res-jb/{latent}"}
    assert cache.dashboard_urls == [page] * 3
    assert page[next(iter(page))].format(latent=17).endswith("/0-res-jb/17")

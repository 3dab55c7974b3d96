"""Where latent models read and write, and which tokens they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune import HookPointError
from interpretune.analysis import ModelInputs
from tests.sessions import STACKS, make_session, padded, plain_model, unpadded_rows
from tests.tiny_latents import FixedDictionary, RandomDictionary, activations_of, last_logits, splice_hooks


@pytest.fixture(params=STACKS)
def session(request: pytest.FixtureRequest, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    return session_of("gpt2", request.param, "left")


@pytest.fixture
def rows(session: it.ITSession) -> list[Tensor]:
    """Rows with BOS (which is the padding too) and EOS in odd places, one of them at the answer position."""
    bos, eos = session.datamodule.tokenizer.bos_token_id, session.datamodule.tokenizer.eos_token_id
    first, second, third = (tokens for tokens, _ in unpadded_rows(session)[:3])
    return [
        torch.cat([first[:6], torch.tensor([bos]), first[6:]]),
        torch.cat([second, torch.tensor([eos])]),
        third[1:4],
    ]


def spliced(session: it.ITSession, rows: list[Tensor], side: str, latent_models: list[Any]) -> tuple[Tensor, Any]:
    inputs = ModelInputs.from_batch(padded(rows, side, session.datamodule.tokenizer.pad_token_id))
    names = list(map(activations_of, latent_models))
    with torch.no_grad():
        run = session.module.backend.run_spliced(inputs, latent_models, record=names)
    return run.answer_logits, run.activations


def naive(session: it.ITSession, rows: list[Tensor], latent_models: list[Any], kind: str = "gpt2") -> Tensor:
    special = [session.datamodule.tokenizer.bos_token_id, session.datamodule.tokenizer.eos_token_id]
    model = plain_model(kind)
    with torch.no_grad():
        return torch.stack(
            [last_logits(model, row, splice_hooks(latent_models, row, special, lambda _, x: x)) for row in rows]
        )


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("side", ["left", "right"])
def test_special_tokens_stay_as_they_are_where_the_latent_model_says_so(
    session: it.ITSession, rows: list[Tensor], side: str
) -> None:
    found = {}
    for skips in (False, True):
        item = RandomDictionary("blocks.0.hook_resid_post", seed=4, skips=skips)
        found[skips], _ = spliced(session, rows, side, [item])
        close(found[skips], naive(session, rows, [item]))
    assert (found[True] - found[False]).abs().amax(-1).min() > 0.05


def test_untouched_positions_are_first_special_and_padding_but_never_the_answer(session: it.ITSession) -> None:
    bos, eos = session.datamodule.tokenizer.bos_token_id, session.datamodule.tokenizer.eos_token_id
    word = 40
    left = [[bos, bos, word, eos, word, eos], [bos, bos, bos, bos, bos, word], [bos, bos, bos, bos, bos, bos]]
    mask = [[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]
    wanted = [[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]]
    untouched = session.module.backend.untouched_positions(ModelInputs(torch.tensor(left), torch.tensor(mask)))
    assert untouched.int().tolist() == wanted
    right = ModelInputs(torch.tensor([[word, word, eos, word, bos, bos]]), torch.tensor([[1, 1, 1, 1, 0, 0]]))
    assert session.module.backend.untouched_positions(right).int().tolist() == [[1, 0, 1, 0, 1, 1]]


def test_activations_are_zero_where_tokens_stay_as_they_are(session: it.ITSession, rows: list[Tensor]) -> None:
    item = RandomDictionary("blocks.1.hook_resid_pre", seed=4, skips=True)
    _, activations = spliced(session, rows, "right", [item])
    of_first = activations[activations_of(item)][0]
    assert of_first[0].abs().max() == 0
    assert of_first[6].abs().max() == 0
    assert of_first[1].abs().max() > 0


def test_backend_made_before_the_data_knows_special_tokens_afterwards(tmp_path: Any) -> None:
    for stack in STACKS:
        session = make_session(tmp_path / stack, "gpt2", stack, init=False)
        _ = session.module.backend
        it.it_init(**session)
        known = session.module.backend.special_token_ids().tolist()
        assert set(session.datamodule.tokenizer.all_special_ids) <= set(known), stack


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transcoder_reads_at_one_place_and_writes_at_another(
    kind: str, session: it.ITSession, session_of: Callable[..., it.ITSession], request: pytest.FixtureRequest
) -> None:
    session = session_of(kind, request.node.callspec.params["session"], "left")
    rows = [tokens for tokens, _ in unpadded_rows(session)[:3]]
    transcoder = RandomDictionary("blocks.1.hook_resid_pre", output="blocks.1.hook_mlp_out", seed=5, skips=True)
    logits, activations = spliced(session, rows, "left", [transcoder])
    close(logits, naive(session, rows, [transcoder], kind))
    assert set(activations) == {"blocks.1.hook_resid_pre.hook_sae_acts_post"}
    same_place = RandomDictionary("blocks.1.hook_mlp_out", seed=5, skips=True)
    assert (logits - spliced(session, rows, "left", [same_place])[0]).abs().max() > 0.05


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_an_autoencoder_reads_what_a_transcoder_wrote_whatever_their_order(
    session: it.ITSession, rows: list[Tensor], order: list[int]
) -> None:
    transcoder = RandomDictionary("blocks.1.hook_resid_pre", output="blocks.1.hook_mlp_out", seed=5)
    autoencoder = RandomDictionary("blocks.1.hook_mlp_out", seed=6)
    pair = [transcoder, autoencoder]
    logits, activations = spliced(session, rows, "left", [pair[i] for i in order])
    close(logits, naive(session, rows, pair))
    assert set(activations) == {activations_of(item) for item in pair}


def test_two_names_of_one_tensor_are_spliced_in_turn(session: it.ITSession, rows: list[Tensor]) -> None:
    pair = [RandomDictionary("blocks.0.hook_resid_post", seed=7), RandomDictionary("blocks.1.hook_resid_pre", seed=8)]
    logits, _ = spliced(session, rows, "left", pair)
    close(logits, naive(session, rows, pair))


def test_two_latent_models_that_read_at_one_place_are_refused(session: it.ITSession, rows: list[Tensor]) -> None:
    pair = [RandomDictionary("blocks.1.hook_mlp_out", seed=7), RandomDictionary("blocks.1.hook_mlp_out", seed=8)]
    with pytest.raises(HookPointError, match=r"both read at blocks\.1\.hook_mlp_out"):
        spliced(session, rows, "left", pair)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_heads_are_flattened_in_the_order_of_the_output_projection(
    kind: str, session: it.ITSession, session_of: Callable[..., it.ITSession], request: pytest.FixtureRequest
) -> None:
    session = session_of(kind, request.node.callspec.params["session"], "left")
    rows = [tokens for tokens, _ in unpadded_rows(session)[:3]]
    item = RandomDictionary("blocks.1.attn.hook_z", seed=9)
    logits, _ = spliced(session, rows, "right", [item])
    wanted = naive(session, rows, [item], kind)
    close(logits, wanted)
    with torch.no_grad():
        clean = torch.stack([last_logits(plain_model(kind), row) for row in rows])
    assert (wanted - clean).abs().max() > 0.05


@pytest.mark.parametrize(
    "place", ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.2.hook_mlp_out"]
)
def test_the_identity_changes_nothing(session: it.ITSession, rows: list[Tensor], place: str) -> None:
    inputs = ModelInputs.from_batch(padded(rows, "left", session.datamodule.tokenizer.pad_token_id))
    with torch.no_grad():
        clean = session.module.backend.run(inputs)
    close(spliced(session, rows, "left", [FixedDictionary(place)])[0], clean)
    zeroed, _ = spliced(session, rows, "left", [FixedDictionary(place, zero=True)])
    assert (zeroed - clean).abs().max() > 0.05

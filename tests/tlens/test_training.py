"""Training with TransformerLens: the same losses as without it, what is trained, and TransformerLens's names for it."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import interpretune as it
from interpretune import ModelLoadError
from interpretune_tlens import ITLensFromPretrainedConfig
from interpretune_tlens.parameter_names import name_parameters
from tests.sessions import make_session
from tests.tiny import VOCABULARY, save_tiny_model, tiny_gpt2, tiny_llama

# peft asks transformers by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
SCHEDULE = {
    "class_path": "torch.optim.lr_scheduler.LinearLR",
    "init_args": {"start_factor": 0.2, "total_iters": 10},
    "interval": "step",
}
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


class Recorder(it.ClassificationModule):
    """Keeps the loss of every batch."""

    losses: list[float]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def trainable_session(folder: Path, kind: str = "gpt2", stack: str = "bridge", **settings: Any) -> it.ITSession:
    return make_session(folder, kind, stack, module_cls=Recorder, **{"optimizer_init": ADAMW, **settings})


def other_model(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "neox":  # queries, keys and values of a head lie together: the pieces are copies
            return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
        if kind == "phi3":  # gate and up are one matrix too
            return Phi3ForCausalLM(Phi3Config(**SIZES))
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_key_value_heads=2))


def with_lora(model: Any, *targets: str) -> Any:
    is_gpt2 = model.config.model_type == "gpt2"  # its layers hold their matrices the other way round
    cfg = LoraConfig(target_modules=list(targets), r=2, init_lora_weights=False, fan_in_fan_out=is_gpt2)
    return get_peft_model(model, cfg)


def one_backward(session: it.ITSession) -> None:
    module, datamodule = session["module"], session["datamodule"]
    module.set_training_mode()
    module.training_step(next(iter(datamodule.train_dataloader())), 0).backward()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_same_losses_as_without_transformer_lens(tmp_path, kind):
    loop = it.LoopConfig(
        max_steps=12, max_epochs=-1, accumulate_grad_batches=2, seed=7, limit_val_batches=0, progress=False
    )
    losses = {}
    for stack in ("core", "bridge"):
        session = trainable_session(tmp_path, kind, stack, lr_scheduler_init=SCHEDULE)
        it.fit(**session, loop_cfg=loop)
        losses[stack] = torch.tensor(session["module"].losses)
    assert len(losses["core"]) == 18  # epochs of three batches, hence of two optimizer steps
    assert losses["core"][-6:].mean() < 0.7 * losses["core"][:6].mean()
    torch.testing.assert_close(losses["bridge"], losses["core"], atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_dropout_is_that_of_the_model_also_after_a_validation(tmp_path):
    """Of the embedding, which the bridge does not hold, and after attention, which it would leave out."""
    model = save_tiny_model(tmp_path / "model", "gpt2")
    config = json.loads((model / "config.json").read_text())
    config |= dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.1)
    (model / "config.json").write_text(json.dumps(config))
    loop = it.LoopConfig(max_epochs=2, seed=7, progress=False)
    losses = {}
    stacks = [("core",), ("transformer_lens",), ("lightning", "transformer_lens")]
    if not importlib.util.find_spec("interpretune_lightning"):
        del stacks[2:]
    for adapters in stacks:
        session = trainable_session(
            tmp_path, stack="bridge" if "transformer_lens" in adapters else "core", adapters=adapters
        )
        it.fit(**session, loop_cfg=loop)
        losses[adapters] = torch.tensor(session.module.losses)
    for adapters in stacks[1:]:
        torch.testing.assert_close(losses[adapters], losses["core",], atol=1e-4, rtol=0, msg=f"{adapters}")


def test_every_part_of_the_wrapped_model_keeps_its_mode(tmp_path):
    session = trainable_session(tmp_path)
    model = session.module.model.original_model
    session.module.set_training_mode()
    model.transformer.h[1].attn.eval()
    before = {name: part.training for name, part in model.named_modules()}
    it.validate(**session, loop_cfg=it.LoopConfig(progress=False))
    assert {name: part.training for name, part in model.named_modules()} == before
    assert before["transformer.drop"]
    assert not any(part.training for part in copy.deepcopy(session.module.model).eval().original_model.modules())
    assert {name: part.training for name, part in model.named_modules()} == before


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "phi3", "mixtral"])
def test_what_is_trainable_gets_a_gradient_and_nothing_else(tmp_path, kind):
    own = {} if kind in ("gpt2", "llama") else {"hf_model": other_model(kind)}
    session = trainable_session(tmp_path, kind if not own else "gpt2", **own)
    one_backward(session)
    parameters = dict(session["module"].named_parameters())
    trained = {name for name, item in parameters.items() if item.requires_grad}
    assert trained == {name for name, item in parameters.items() if item.grad is not None}
    source = own.get("hf_model") or {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind]()
    assert sum(parameters[name].numel() for name in trained) == sum(item.numel() for item in source.parameters())


def test_pieces_of_a_joint_matrix_write_into_it(tmp_path):
    session = trainable_session(tmp_path)
    it.fit(**session, loop_cfg=it.LoopConfig(max_steps=2, limit_val_batches=0, progress=False))
    attention = session["module"].model.blocks[1].attn
    pieces = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]).T
    assert torch.equal(attention.qkv.weight, pieces)
    assert not torch.equal(pieces, tiny_gpt2().transformer.h[1].attn.c_attn.weight)


def test_a_frozen_model_stays_frozen(tmp_path):
    session = trainable_session(tmp_path, optimizer_init=None)
    assert not any(item.requires_grad for item in session["module"].parameters())


@pytest.mark.parametrize(("kind", "stack"), [("gpt2", "bridge"), ("llama", "hooked")])
def test_interrupted_training_ends_where_the_other_does(tmp_path, kind, stack):
    def train(run_dir: str, **settings: Any) -> it.ITSession:
        session = trainable_session(tmp_path, kind, stack, lr_scheduler_init=SCHEDULE)
        loop = {"max_epochs": 3, "seed": 3, "progress": False, "run_dir": tmp_path / run_dir, "resume_from": "last"}
        it.fit(**session, loop_cfg=it.LoopConfig(**{**loop, **settings}))
        return session

    whole = train("whole")
    losses = whole["module"].losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    train("cut", max_epochs=1)
    resumed = train("cut")
    assert resumed["module"].losses == pytest.approx(losses[len(losses) // 3 :], abs=1e-6)
    for (name, one), other in zip(whole["module"].named_parameters(), resumed["module"].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)


# --------------------------------------------------------------------------------------- adapters and quantized weights


def test_adapters_train_under_a_bridge(tmp_path):
    adapted = with_lora(tiny_llama(), "q_proj", "v_proj")
    session = trainable_session(tmp_path, "llama", hf_model=adapted)
    one_backward(session)
    parameters = dict(session["module"].named_parameters())
    trained = {name for name, item in parameters.items() if item.requires_grad}
    assert len(trained) == 3 * 2 * 2
    assert all("lora_" in name and parameters[name].grad is not None for name in trained)
    names = name_parameters(session["module"].model)
    assert {name for name in names["blocks.1.attn.W_Q"] if name in trained} == {
        name for name in trained if ".1." in name and "q_proj" in name
    }
    batch = next(iter(session["datamodule"].val_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = adapted.eval()(**inputs, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        torch.testing.assert_close(session["module"].eval()(**inputs)[mask], expected[mask], atol=1e-4, rtol=0)


def test_what_stays_frozen_beside_adapters_includes_the_pieces(tmp_path):
    session = trainable_session(tmp_path, hf_model=with_lora(tiny_gpt2(), "c_fc"))
    trained = [name for name, item in session["module"].named_parameters() if item.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_an_adapter_of_a_joint_matrix_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"transformer.h.0.attn.c_attn has an adapter.*target_modules"):
        trainable_session(tmp_path, hf_model=with_lora(tiny_gpt2(), "c_attn"))


def test_what_weight_processing_would_lose_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"plain weights only. Use tl_cfg=ITLensFromPretrainedNoProc"):
        trainable_session(tmp_path, hf_model=with_lora(tiny_gpt2(), "c_proj"), tl_cfg=ITLensFromPretrainedConfig())


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_names_stand_for_the_weights_that_transformer_lens_gives_them(tmp_path, kind):
    module = trainable_session(tmp_path, kind)["module"]
    parameters, names = dict(module.named_parameters()), name_parameters(module.model)
    assert set(parameters) == {real for reals in names.values() for real in reals}
    heads, width = 4, 32
    shown = {name for name, _ in module.model.tl_named_parameters()}
    zeros = set()
    if kind == "llama":
        zeros |= {f"blocks.{i}.attn.b_{x}" for i in range(3) for x in "QKVO"}
        zeros |= {f"blocks.{i}.mlp.b_{x}" for i in range(3) for x in ("in", "out")}
    # which the model does not have; nor, with later versions, the bias of the unembedding
    assert {name for name in shown if name not in names} - {"unembed.b_U"} == zeros
    for name, expected in module.model.tl_named_parameters():
        if name not in names:
            continue
        (real,) = names[name]
        found = parameters[real]
        if name.endswith(("W_Q", "W_K", "W_V")):
            found = found.view(-1, width // heads, width).transpose(1, 2)
            found = found.repeat_interleave(heads // len(found), dim=0)
        elif name.endswith(("b_Q", "b_K", "b_V")):
            found = found.view(heads, -1)
        elif name.endswith("W_O"):
            found = (found if kind == "gpt2" else found.T).reshape(heads, -1, width)
        elif name.endswith("W_U") or (kind == "llama" and name.endswith(("W_in", "W_gate", "W_out"))):
            found = found.T
        assert torch.equal(found, expected), name


def test_tied_embeddings_are_one_parameter(tmp_path):
    names = name_parameters(trainable_session(tmp_path)["module"].model)
    assert names["unembed.W_U"] == names["embed.W_E"]


def test_what_transformer_lens_has_no_name_for_is_named_by_its_place(tmp_path):
    module = trainable_session(tmp_path, hf_model=other_model("mixtral"))["module"]
    (real,) = name_parameters(module.model)["blocks.1.mlp.experts.down_proj"]
    assert isinstance(dict(module.named_parameters())[real], nn.Parameter)

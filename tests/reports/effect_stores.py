"""Stores of effects and facts about units that no model made: known numbers, or texts that attack a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from interpretune.circuits import CircuitEdges, Faithfulness, JudgedMethods, SufficientSet
from interpretune.evidence import (
    Card,
    Change,
    ChangedRow,
    Continuation,
    Dose,
    Evidence,
    HeldOut,
    ShadedPrompt,
    TokenEffect,
)
from interpretune.evidence.stored import write_facts, write_part
from interpretune.questions.question import FIELDS
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.values import LatentValues

ROWS, SIZES = 40, {"coder": 30, "layers.1.attn_z": 4}
JUDGED = (
    *("sign_errors", "wrong_sign", "rank_correlation", "top_overlap", "node_sign_errors"),
    *("node_rank_correlation", "nodes_needed", "top_faithfulness"),
)
STRONG = 7
"""The latent of ``coder`` with the largest effects."""


def numbers(method: str = "exact", strength: float = 0.5) -> dict[str, Any]:
    """Effects and activations ``[row, unit]`` by unit set; approximate effects are off by a little."""
    draw = np.random.default_rng(0)
    effects, activations = {}, {}
    for name, size in SIZES.items():
        activations[name] = np.where(draw.random((ROWS, size)) < 0.6, draw.random((ROWS, size)) + 0.1, 0)
        effects[name] = np.where(activations[name] > 0, draw.normal(0, 0.02, (ROWS, size)), 0)
    activations["coder"][:, STRONG] = 1
    effects["coder"][:, STRONG] = strength + draw.normal(0, 0.1, ROWS)
    if method != "exact":
        effects = {name: found * 0.9 for name, found in effects.items()}
    return {"effects": effects, "activations": activations}


def write_effects(
    folder: Path,
    *,
    method: str = "exact",
    strength: float = 0.5,
    wrong: int = 2,
    about: dict[str, Any] | None = None,
    question: dict[str, Any] | None = None,
    texts: dict[str, Any] | None = None,
    batches: int = 1,
    turned: bool = False,
    evidence: Evidence | None = None,
) -> Path:
    """Write a store of effects in the form of ``it.effects``.

    Args:
        folder: The store.
        method: Of the question.
        strength: Effect of the strong latent.
        wrong: Rows that the model answers wrong.
        about: What the manifest says beside or in the place of its own.
        question: The same of the question.
        texts: Of rows, in the place of those here.
        batches: Batches that there are to be; with 2 the store is not finished.
        turned: Whether the strong latent speaks for the first answer, whichever is correct.
        evidence: What is kept beside the effects.
    """
    told = {
        "objective": "logit_diff",
        "unit": "logits",
        "value": "zero",
        "positions": "answer",
        "method": method,
        "budget": None,
        "rows": ROWS,
        "units": [
            {"name": name, "kind": "head" if "attn" in name else "latent", "size": size, "chosen": size}
            for name, size in SIZES.items()
        ],
        **(question or {}),
    }
    noted = {
        "question": told,
        "data": {"fingerprint": "ab" * 32, "examples": ROWS},
        "versions": {"interpretune-core": "0.1.0"},
        "model": {"source": "owner/Tiny", "class": "Tiny", "type": "tiny", "sha256": "c0" * 32},
        "latent_models": [{"name": "coder", "d_sae": SIZES["coder"], "sha256": "de" * 32}],
        **(about or {}),
    }
    correct = torch.arange(ROWS) % 2
    predicted = torch.where(torch.arange(ROWS) < wrong, 1 - correct, correct)
    objective = torch.linspace(1, 3, ROWS, dtype=torch.float64)
    found = numbers(method, strength)
    if turned:
        found["effects"]["coder"][1::2, STRONG] *= -1
    values = {
        name: {at: LatentValues(torch.arange(SIZES[at]), torch.tensor(x), SIZES[at]) for at, x in of.items()}
        for name, of in found.items()
    }
    row = {
        "row": torch.arange(ROWS),
        "position": torch.full((ROWS,), 4),
        "token": ["near"] * ROWS,
        "prompts": [f"The keys number {i} near" for i in range(ROWS)],
        "answers": [[" are", " is"]] * ROWS,
        "correct": correct,
        "predicted": predicted,
        "objective": objective,
        "objective_spliced": objective - 0.1,
        "screened_out": torch.zeros(ROWS, dtype=torch.long),
        "largest_screened": torch.zeros(ROWS, dtype=torch.float64),
        **values,
        **(texts or {}),
    }
    with StoreWriter.create(
        folder, [item for item in FIELDS if item.name in row], noted, key=method, n_batches=batches
    ) as writer:
        writer.write(0, range(ROWS), row)
        if batches == 1:
            writer.seal()
    if evidence is not None:
        keep(folder, evidence)
    return folder


def keep(folder: Path, evidence: Evidence) -> None:
    """Write evidence into a store of effects."""
    for part in ("held_out", "cards", "steering"):
        if facts := getattr(evidence, part):
            write_part(AnalysisStore.open(folder), part, "", facts)


def keep_circuit(folder: Path, text: str = "a") -> None:
    """Write a circuit of three nodes into a store of effects: two latents below a head.

    Args:
        folder: The store.
        text: What the names of units contain.
    """
    nodes = (f"coder latent {STRONG}", f"coder latent 3 {text}", "layers.1.attn_z head 2")
    told = {"objective": f"logit_diff {text}", "unit": "logits", "value": "zero"}
    rows = np.linspace(1, 3, 10)
    half = np.stack([rows, rows * 0, rows * 0.9])
    parts: dict[str, Any] = {
        "edges": CircuitEdges(
            **told,
            units=nodes,
            sets=("coder", "coder", "layers.1.attn_z"),
            ids=(STRONG, 3, 2),
            kinds=("latent", "latent", "head"),
            layers=(0, 0, 1),
            heights=(0, 0, 1),
            node_effect=np.array([[0.5, -0.1, 0.2], [0.4, -0.2, 0.1], [0.6, 0.0, 0.3]]),
            node_size=np.array([0.5, 0.1, 0.2]),
            node_gradient=np.array([0.4, 0.1, 0.2]),
            sources=(0, 1),
            targets=(2, 2),
            effect=np.array([[0.3, 0.1], [0.2, 0.0], [0.4, 0.2]]),
            size=np.array([0.3, 0.1]),
            gradient=np.array([np.nan, np.nan]),
        ),
        "sufficient": SufficientSet(
            **told,
            share=0.8,
            reached=True,
            units=nodes[:1],
            path=np.array([0.9]),
            search="greedy",
            proven=False,
            evaluations=4,
            budget=10,
            pool=nodes,
            pool_told="3 units",
            found_on=half,
            held_out=half * 1.5,
        ),
        "faithfulness": Faithfulness(
            **told,
            rankings=("exact", text),
            sizes=(1, 2, 3),
            units=3,
            pool_told="3 units",
            model=rows,
            nothing=rows * 0,
            kept=np.stack([rows * share for share in (0.5, 0.9, 1, 0.2, 0.4, 1)]).reshape(2, 3, -1),
            left_out=np.zeros((2, 3, 10)),
        ),
        "methods": JudgedMethods(
            **told,
            methods=("exact", text),
            units=3,
            pool_told="3 units",
            top=20,
            share=0.8,
            **{name: np.array([0.0, 0.25]) for name in JUDGED},
        ),
    }
    store = AnalysisStore.open(folder)
    for part, facts in parts.items():
        write_facts(store, f"circuit_{part}", "", facts)


def change(name: Any, flipped: float, *, control: bool = False, among: int = 49) -> Change:
    """A change; intervals reach 0.1 to both sides, and have no width at shares of 0 and 1, as a bootstrap has it."""
    reach = 0.1 if 0 < flipped < 1 else 0.0
    told = f"{'2 other units' if control else 'the 2 units'} set to {name}"
    return Change(name, control, told, 0.9, flipped, among, max(0.0, flipped - reach), min(1.0, flipped + reach))


def held_out(ablated: float = 0.6, control: float = 0.05, rows: int = 50, judged: Any = "ablated") -> HeldOut:
    """Proof by one change."""
    among = round(0.98 * rows)
    changes = (change(judged, ablated, among=among), change(judged, control, control=True, among=among))
    return HeldOut(rows, 0.98, ("coder latent 7", "coder latent 3"), judged, changes)


def card(text: str = "keys", name: str = f"coder latent {STRONG}", url: str | None = None) -> Card:
    """A card with some text wherever there is text."""
    prompt = ShadedPrompt(3, ("The", text, " near"), (0.0, 2.0, -0.5), (text, " is"), 0, 0, 2)
    tokens = (TokenEffect(text, 1.5),)
    return Card(
        name=name,
        units="coder",
        unit=STRONG,
        kind="latent",
        mean_effect=0.5,
        low=0.4,
        high=0.6,
        share_active=0.2,
        prompts=(prompt,),
        edges=(0.0, 1.0, 2.0),
        counts=(50, 3),
        promoted_total=tokens,
        suppressed_total=tokens,
        promoted_direct=tokens,
        suppressed_direct=tokens,
        doses=tuple(Dose(factor, 2 + factor, 0.9) for factor in (0, 0.5, 1, 2, 4)),
        changed=(ChangedRow(1, text, text, " is"),),
        url=url,
    )


def continuation(text: str = "keys") -> Continuation:
    """A continued prompt."""
    return Continuation(0, text, text, f"{text} are", text)

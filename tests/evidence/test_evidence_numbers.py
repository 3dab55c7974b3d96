"""Evidence equals what plain hooks give: whole forwards of one row each, with nothing of the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.evidence import Evidence, evidence_of
from interpretune.questions import Latents
from interpretune.testing.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.questions.plain_loops import Coder, Edit, PlainLoops, PlainRow, objective_of

LAYER, WIDTH, N_HEADS = 1, 32, 4
ONE = [(" Kit", " Lena")] * 4
SEVERAL = [(" Kit", " Lena sees Bo", " Max"), (" Nora has", " it"), (" Gus", " Hana"), (" Max", " Pia was", " Bo")]


def rows_of(words: str, answers: Sequence[tuple[str, ...]], correct: Sequence[int]) -> list[it.PromptRow]:
    """Rows that begin in one of several ways and end with a word, corrupted in their first one."""
    starts = ("Ada sees {} or", "she was the {}", "June with Kit has {}", "no {} and the red dog")
    found = []
    for i, start in enumerate(starts):
        prompt = start.format(words.split()[i])
        corrupted = " ".join(["Bo", *prompt.split()[1:]])
        found.append(it.PromptRow(prompt, answers[i], correct[i], corrupted))
    return found


class Linear(Coder):
    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.parts[2][latents]


class Case:
    """A question on a tiny model, and what plain hooks make of it."""

    def __init__(self, model: Any, side: str, units: str, value: str, positions: str, *told: Any) -> None:
        self.model, self.tokenizer = model.double().eval(), tiny_tokenizer(side)
        self.value, self.positions, (self.objective, answers) = value, positions, told
        self.rows = rows_of("Bo Cleo Dan dog", answers, (0, 1, 1, 0))
        self.held_out = rows_of("Max Nora Pia cat", answers, (1, 1, 0, 0))
        place = f"layers.{LAYER}.resid_post"
        self.coder = Linear("sae", place, place, torch.float64, True, False) if units == "latents" else None
        self.at: str = {"neurons": "mlp_act", "heads": "attn_z"}.get(units, "resid_post")
        asked = {"neurons": it.Neurons(LAYER), "heads": it.Heads(LAYER)}
        self.units = Latents(self.coder) if self.coder is not None else asked[units]
        self.plain = PlainLoops(self.model, LAYER, self.tokenizer.all_special_ids)

    def asked(self, store: Any = None) -> Any:
        return it.effects(
            self.model,
            self.tokenizer,
            self.rows,
            units=self.units,
            objective=self.objective,
            value=self.value,
            positions=self.positions,
            batch_size=3,
            store=store,
        )

    def members(self, unit: int) -> list[int]:
        width = WIDTH // N_HEADS
        return list(range(unit * width, (unit + 1) * width)) if self.at == "attn_z" else [unit]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def row(self, row: it.PromptRow, *, swapped: bool = False) -> PlainRow:
        prompts = [[self.tokenizer.bos_token_id, *self.ids(str(text))] for text in (row.prompt, row.corrupted)]
        prompts = prompts[::-1] if swapped else prompts
        return PlainRow(prompts[0], [self.ids(answer) for answer in row.answers], row.correct, prompts[1])

    def points(self, tokens: Sequence[int]) -> list[int]:
        return [len(tokens) - 1] if self.positions == "answer" else list(range(len(tokens)))

    def latents(self, tokens: Sequence[int]) -> Tensor:
        """``[pos, d]``."""
        return self.plain.seen(tokens, self.coder or self.at, [self.coder] if self.coder else [])

    @cached_property
    def ablated_to(self) -> Tensor:
        if self.value != "mean":
            return torch.zeros_like(self.latents([0])[0])
        rows = [self.row(row).prompt for row in self.rows]
        return torch.cat([self.latents(tokens)[self.points(tokens)] for tokens in rows]).mean(0)

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], n_prompt: int, edit: Edit) -> Tensor:
        """``[pos, vocab]``."""
        with contextlib.ExitStack() as stack:
            if self.coder is not None:
                stack.enter_context(self.plain.spliced(self.coder, tokens, n_prompt, edit))
            else:
                stack.enter_context(self.plain.edited(self.at, edit))
            return self.model(input_ids=torch.tensor([list(tokens)])).logits[0]

    def outcome(self, row: PlainRow, edit: Edit) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of answers and of all tokens after the prompt, and logits there."""
        n, scores = len(row.prompt), []
        for answer in row.answers:
            log_probs = self.logits([*row.prompt, *answer[:-1]], n, edit).log_softmax(-1)
            scores.append(sum(log_probs[n - 1 + i, token] for i, token in enumerate(answer)))
        logits = self.logits(row.prompt, n, edit)[-1]
        return torch.stack(scores), logits.log_softmax(-1), logits

    def setting(self, row: PlainRow, members: Sequence[int], values: Tensor) -> Edit:
        """Set members at the points of a row to their values among ``[pos, d]``."""
        points = self.points(row.prompt)

        def edit(activations: Tensor) -> Tensor:
            changed = activations.clone()
            for point in points:
                changed[:, point, list(members)] = values[point, list(members)]
            return changed

        return edit

    def rated(self, row: PlainRow, edit: Edit) -> int:
        return int(self.outcome(row, edit)[0].argmax())

    def measured(self, row: PlainRow, outcome: tuple[Tensor, Tensor, Tensor]) -> float:
        name = self.objective if isinstance(self.objective, str) else self.objective.against
        return objective_of(name, row, outcome[:2], outcome[1])


def nothing(activations: Tensor) -> Tensor:
    return activations


CASES: Mapping[str, tuple[Any, ...]] = {
    "neurons": (tiny_llama(), "left", "neurons", "corrupted", "answer", "logit_diff", ONE),
    "heads": (tiny_gpt2(), "right", "heads", "zero", "each", "log_prob", SEVERAL),
    "latents": (tiny_llama(), "right", "latents", "mean", "answer", it.LogitDiff("mean"), SEVERAL),
}


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest) -> tuple[Case, Any, Evidence]:
    case = Case(*CASES[request.param])
    effects = case.asked()
    told = evidence_of(effects, held_out=case.held_out, top=2, cards=2, steer=3, new_tokens=3)
    return case, effects, told


def test_the_proof_is_that_of_plain_hooks(found):
    case, effects, evidence = found
    top = effects.top(2)
    members = [i for unit in top.unit for i in case.members(unit)]
    rows = [case.row(row) for row in case.held_out]
    swapped = [case.row(row, swapped=True) for row in case.held_out]
    correct = np.array([row.correct for row in rows])
    before, before_swapped = (np.array([case.rated(row, nothing) for row in some]) for some in (rows, swapped))

    def after(some: Sequence[PlainRow], values: Any, members: Sequence[int] = members) -> Any:
        return np.array([case.rated(row, case.setting(row, members, values(row))) for row in some])

    def corrupted(row: PlainRow) -> Tensor:
        return case.latents(row.corrupted)

    ablated = after(rows, lambda row: case.ablated_to.expand(len(row.prompt), -1))
    patched, added = after(rows, corrupted), after(swapped, corrupted)
    right = before == correct
    expected = {
        "ablated": (ablated == correct, right, ablated != correct),
        "corrupted": (patched == correct, right, patched != correct),
        "added": (added == correct, right & (before_swapped != correct), added == correct),
    }
    proof = evidence.held_out
    assert proof is not None
    assert (proof.rows, proof.share_correct, proof.units) == (4, right.mean(), tuple(top.name))
    assert right.any()
    changes = {change.name: change for change in proof.changes if not change.control}
    controls = {change.name: change for change in proof.changes if change.control}
    assert [*changes] == [*controls] == ["ablated", "corrupted", "added"]
    assert proof.judged == ("corrupted" if case.value == "corrupted" else "ablated")
    for name, (now_right, among, flips) in expected.items():
        assert changes[name].share_correct == now_right.mean()
        flipped = flips[among].mean() if among.any() else float("nan")
        assert changes[name].flipped == pytest.approx(flipped, nan_ok=True)
        interval = (changes[name].low, changes[name].high)
        assert interval[0] <= flipped <= interval[1] if among.sum() > 1 else np.isnan(interval).all()

    if case.at == "attn_z":  # of four heads two are left for control, in every draw
        left = [i for unit in {0, 1, 2, 3} - {*top.unit} for i in case.members(unit)]
        nowhere = torch.zeros(99, WIDTH).double()
        for name, values in (("ablated", lambda _: nowhere), ("corrupted", corrupted)):
            others = after(rows, values, left)
            told = (controls[name].share_correct, controls[name].flipped)
            assert told == ((others == correct).mean(), (others != correct)[right].mean())
        others, among = after(swapped, corrupted, left), expected["added"][1]
        assert controls["added"].share_correct == (others == correct).mean()
        flipped = (others == correct)[among].mean() if among.any() else float("nan")
        assert controls["added"].flipped == pytest.approx(flipped, nan_ok=True)


def test_cards_are_those_of_plain_hooks(found):
    case, effects, evidence = found
    top = effects.top(2)
    rows, vocab = [case.row(row) for row in case.rows], case.tokenizer.get_vocab()
    assert [card.name for card in evidence.cards] == list(top.name)
    clean = [case.outcome(row, nothing) for row in rows]
    for card, unit, mean in zip(evidence.cards, top.unit, top.mean_effect, strict=True):
        members = case.members(unit)
        assert card.mean_effect == pytest.approx(mean)
        assert card.low <= mean <= card.high
        for dose in card.doses:
            edits = [case.setting(row, members, dose.factor * case.latents(row.prompt)) for row in rows]
            told = [(row, case.outcome(row, edit)) for row, edit in zip(rows, edits, strict=True)]
            objective = np.mean([case.measured(row, outcome) for row, outcome in told])
            right = np.mean([int(outcome[0].argmax()) == row.correct for row, outcome in told])
            assert (dose.objective, dose.share_correct) == (pytest.approx(objective, abs=1e-10), right)
        assert [dose.factor for dose in card.doses] == [0, 0.5, 1, 2, 4]
        edits = [case.setting(row, members, case.ablated_to.expand(len(row.prompt), -1)) for row in rows]
        after = [case.outcome(row, edit) for row, edit in zip(rows, edits, strict=True)]
        flips = [(int(a[0].argmax()), int(b[0].argmax())) for a, b in zip(clean, after, strict=True)]
        told = [(item.row, item.before, item.after) for item in card.changed]
        answers = [row.answers for row in case.rows]
        assert told == [(i, answers[i][a], answers[i][b]) for i, (a, b) in enumerate(flips) if a != b]
        mine = told_rows(case, clean, after, card.promoted_in)
        lost = sum(clean[i][2] - after[i][2] for i in mine)
        check_tokens(card.promoted_total, card.suppressed_total, lost / len(mine), vocab)
        direct = sum(straight(case, rows[i], members) for i in mine) / len(mine)
        check_tokens(card.promoted_direct, card.suppressed_direct, direct, vocab)  # norms divide in float32
        counts = np.histogram(direct, card.logit_edges)[0]
        assert np.abs(counts.cumsum() - np.cumsum(card.logit_counts)).max() <= 1  # one may lie on an edge
        assert sum(card.logit_counts) == len(direct)
        seen = [case.latents(row.prompt)[:, members] for row in rows]
        activations = [part[:, 0] if len(members) == 1 else part.norm(dim=-1) for part in seen]
        strongest = max(range(4), key=lambda i: activations[i].abs().max())
        shown = card.prompts[0]
        assert (shown.row, shown.position) == (strongest, len(rows[strongest].prompt) - 1)
        assert shown.activations == pytest.approx(activations[strongest].tolist(), abs=1e-10)
        assert "".join(shown.tokens) == f"<bos> {case.rows[strongest].prompt}"
        assert len(shown.tokens) == len(rows[strongest].prompt)
        everywhere = torch.cat(activations)
        assert card.share_active == (everywhere != 0).double().mean()
        assert card.counts == tuple(np.histogram(everywhere, card.edges)[0])
        assert sum(card.counts) == len(everywhere)
        where = [(i, int(at), float(part[at])) for i, part in enumerate(activations) for at in part.nonzero()]
        if case.coder is None:
            assert card.active is None
        else:
            found_active = zip(card.active.rows, card.active.positions, card.active.values, strict=True)
            assert [item[:2] for item in found_active] == [item[:2] for item in where]
            assert card.active.values == pytest.approx([item[2] for item in where])
    if case.coder is not None:
        assert [list(ids) for ids in evidence.prompts.rows] == [list(row.prompt) for row in rows]


def told_rows(case: Case, clean: list, ablated: list, told: str) -> list[int]:
    """Rows of which tokens are told: of the correct answer that ablation changes most, where all have the same."""
    if len({row.answers for row in case.rows}) > 1:
        assert told == "all rows"
        return [0, 1, 2, 3]
    rows = [case.row(row) for row in case.rows]
    changes = [[case.measured(row, run[i]) for i, row in enumerate(rows)] for run in (clean, ablated)]
    sizes = np.abs(np.subtract(*changes))
    kinds = [[i for i in range(4) if case.rows[i].correct == answer] for answer in (0, 1)]
    mine = max(kinds, key=lambda rows: sizes[rows].mean())
    assert told == f'rows whose answer is "{case.rows[mine[0]].answers[case.rows[mine[0]].correct].strip()}"'
    return mine


def straight(case: Case, row: PlainRow, members: list[int]) -> Tensor:
    """What the unit writes at the answer position, through the last norm, its scale held, and the unembedding."""
    model, activations = case.model, case.latents(row.prompt)[-1, members]
    if case.coder is not None:
        read = case.plain.seen(row.prompt, "resid_post")[-1]
        written = case.coder.encode(read)[members] @ case.coder.parts[2][members]
    elif case.at == "mlp_act":
        written = model.model.layers[LAYER].mlp.down_proj.weight[:, members] @ activations
    else:
        written = activations @ model.transformer.h[LAYER].attn.c_proj.weight[members]
    stream: list[Tensor] = []
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    handle = norm.register_forward_pre_hook(lambda _, args: stream.append(args[0][0, -1]))
    with torch.no_grad():
        model(input_ids=torch.tensor([row.prompt]))
    handle.remove()
    if hasattr(model, "transformer"):
        scale = (stream[0].var(correction=0) + norm.eps).sqrt()
        normed = norm.weight * (written - written.mean()) / scale
    else:
        normed = norm.weight * written / (stream[0].square().mean() + norm.variance_epsilon).sqrt()
    return (model.lm_head.weight @ normed).detach()


def check_tokens(up: Sequence[Any], down: Sequence[Any], values: Tensor, vocab: Mapping[str, int]) -> None:
    """The tokens shown are those with the largest and the smallest values."""
    for shown, sign in ((up, 1), (down, -1)):
        best = (sign * values).topk(10)
        expected = [sign * value for value in best.values.tolist() if value > 0]
        assert [item.value for item in shown] == pytest.approx(expected, rel=1e-6)
        assert [vocab[item.token] for item in shown] == best.indices.tolist()[: len(shown)]
    assert up


def test_continuations_are_those_of_plain_hooks(found):
    case, effects, evidence = found
    members = [i for unit in effects.top(2).unit for i in case.members(unit)]
    assert len(evidence.steering) == 6

    def continued(row: PlainRow, edit: Edit) -> str:
        tokens, begins = list(row.prompt), [answer[0] for answer in row.answers]
        tokens.append(begins[int(case.logits(tokens, len(row.prompt), edit)[-1, begins].argmax())])
        for _ in range(2):
            tokens.append(int(case.logits(tokens, len(row.prompt), edit)[-1].argmax()))
        return str(case.tokenizer.decode(tokens[len(row.prompt) :]))

    def everywhere(activations: Tensor) -> Tensor:
        changed = activations.clone()
        changed[..., members] = case.ablated_to[members]
        return changed

    for i, told in enumerate(evidence.steering):
        row = case.row(case.held_out[told.row])
        patch = case.setting(row, members, case.latents(row.corrupted))
        assert told.plain == continued(row, nothing)
        assert told.steered == continued(row, everywhere if i < 3 else patch)
        assert told.prompt.split()[1:] == str(case.held_out[told.row].prompt).split()
    assert any(told.plain != told.steered for told in evidence.steering)

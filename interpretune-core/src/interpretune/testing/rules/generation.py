"""Rules of generation: options, seeds, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpretune.testing.reference import logits_of
from interpretune.testing.rule import RuleSkipped, expect, rule
from interpretune.testing.rules.step import greedy
from interpretune.testing.workbench import Bench

LONGEST = 6
"""Tokens within which the end token must come."""


def row_that_ends(bench: Bench, others: Sequence[Tensor]) -> tuple[Tensor, int, int]:
    """A row, the token that shall end it, and the index of this token among the new ones, at least 1."""
    special = set(bench.special)
    after = [greedy(bench, row, LONGEST + 2)[0] for row in others]
    for whole in bench.rows:
        for cut in range(min(len(whole) - 2, 6)):
            row = whole[: len(whole) - cut]
            tokens = greedy(bench, row, LONGEST)[0]
            for at in range(1, LONGEST):
                first = tokens.index(tokens[at]) == at and tokens[at] not in special
                if first and any(tokens[at] not in new[: at + 2] for new in after):
                    return row, tokens[at], at
    raise RuleSkipped("the tiny model gives no token that could end one row before the others: choose another seed")


def with_end_token(bench: Bench, token: int) -> Path:
    """The tiny model and its tokenizer, with another end token."""
    from transformers import AutoTokenizer

    ended = {"eos_token_id": token}
    folder = bench.edited_model(f"ends-with-{token}", lambda _: ended, "another end token", "generation_config.json")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
    tokenizer.save_pretrained(str(folder))
    return folder


DRAWS = 400
"""Rows of a prompt of which each draws one token."""

DEVIATIONS = 6
"""Standard deviations that a share of the draws may be away: once in half a billion."""


@rule(stack=True, after=["generation-agrees"])
@torch.no_grad()
def sampling_follows_its_options(bench: Bench) -> None:
    """With ``do_sample`` tokens are drawn as often as temperature, ``top_k`` and ``top_p`` say."""
    row = bench.even_rows[0]
    logits = logits_of(bench.reference, row)[-1].double()
    everything = {"top_k": bench.vocab_size}  # the default of transformers is fewer
    for share in (0.2, 0.8):
        temperature = _temperature_for(logits, share)
        drawn = _draw(bench, row, 0, temperature=temperature, **everything)
        found = float((drawn == int(logits.argmax())).double().mean())
        expect(
            abs(found - share) < DEVIATIONS * (share * (1 - share) / DRAWS) ** 0.5,
            f"with temperature={temperature:.3g} the most probable token is drawn in {found:.0%} of {DRAWS} draws",
            f"about {share:.0%}, its probability at this temperature",
        )
    flat = _temperature_for(logits, 1.5 / bench.vocab_size)
    order = logits.argsort(descending=True).tolist()
    probabilities = (logits / flat).softmax(-1).sort(descending=True).values
    nucleus = int((probabilities.cumsum(0) < 0.1).sum()) + 2  # libraries differ by the token at the edge
    for option, value, allowed in (("top_k", 3, order[:3]), ("top_p", 0.1, order[:nucleus])):
        drawn = _draw(bench, row, 0, temperature=flat, **{option: value})
        outside = sorted({int(token) for token in drawn} - set(allowed))
        expect(
            not outside,
            f"with {option}={value} tokens are drawn that are not among the first {len(allowed)}: {outside[:5]}",
            f"draws among the {len(allowed)} most probable tokens",
        )
        expect(len(drawn.unique()) > 1, f"with {option}={value} one token is drawn, {DRAWS} times", "several")


@rule(stack=True, after=["sampling-follows-its-options"])
@torch.no_grad()
def sampling_follows_the_seed(bench: Bench) -> None:
    """Drawn tokens follow the seed of torch: the same again, and others with another."""
    row = bench.even_rows[0]
    logits = logits_of(bench.reference, row)[-1].double()
    options = {"temperature": _temperature_for(logits, 0.2), "top_k": bench.vocab_size}
    first, again, other = (_draw(bench, row, seed, **options) for seed in (1, 1, 2))
    expect(
        torch.equal(first, again), "after torch.manual_seed(1) other tokens are drawn than the time before", "the same"
    )
    expect(
        not torch.equal(first, other),
        f"after torch.manual_seed(2) the same {DRAWS} tokens are drawn as after torch.manual_seed(1)",
        "other ones: draw from the random state of torch",
    )


@rule(stack=True, after=["generation-agrees"])
@torch.no_grad()
def as_many_new_tokens_as_asked(bench: Bench) -> None:
    """``max_new_tokens`` is the number of new tokens, unless all rows have given the end token before."""
    batch = bench.even_batch()
    width = batch["input_ids"].shape[1]
    for most in (1, 3, 9):
        got = bench.module.it_generate(batch, max_new_tokens=most, do_sample=False).sequences.shape[1] - width
        longest = max(len(greedy(bench, row, most, bench.eos_token_id)[0]) for row in bench.even_rows)
        expect(
            got == longest,
            f"with max_new_tokens={most} there are {got} new tokens",
            f"{longest}, as the plain model gives until the end token",
        )


@rule(stack=True, after=["as-many-new-tokens-as-asked", "padding-generation"])
@torch.no_grad()
def generation_ends_at_eos(bench: Bench) -> None:
    """A row that gives the end token has ended: padding follows, the other rows go on, and all ended is the end."""
    row, token, at = row_that_ends(bench, list(bench.even_rows))
    batch = bench.padded([row, *bench.even_rows], "left")
    width, most = batch["input_ids"].shape[1], at + 4
    folder = with_end_token(bench, token)
    module = bench.new_session(model_folder=folder).module
    tokenizer = bench.session.datamodule.tokenizer
    fill = {token, int(tokenizer.pad_token_id)}
    together = module.it_generate(batch, max_new_tokens=most, do_sample=False).sequences[:, width:]
    for i, prompt in enumerate((row, *bench.even_rows)):
        wanted = greedy(bench, prompt, most, token)[0]
        got = together[i].tolist()
        expect(
            got[: len(wanted)] == wanted, f"row {i} goes on with {got}", f"{wanted}, and nothing after the end token"
        )
        rest = set(got[len(wanted) :])
        expect(
            rest <= fill,
            f"row {i} has the tokens {got[len(wanted) :]} after its end token {token}",
            f"padding or end tokens, {sorted(fill)}",
        )
    alone = bench.padded([row], "left")
    new = module.it_generate(alone, max_new_tokens=most, do_sample=False).sequences.shape[1] - len(row)
    expect(
        new == at + 1,
        f"a row whose token {at} is the end token gets {new} new tokens",
        f"{at + 1}: when all rows have ended, generation ends",
    )


@rule(stack=True, after=["generation-ends-at-eos"])
@torch.no_grad()
def generation_heeds_its_options(bench: Bench) -> None:
    """Options of generation have their effect, and those that are not known are refused."""
    module, batch = bench.module, bench.even_batch()
    width = batch["input_ids"].shape[1]
    for option, value, seen, wanted in _further(bench, module, batch, width):
        expect(seen, f"the option {option}={value!r} is ignored", f"{wanted}, or an error that refuses the option")


def _further(
    bench: Bench, module: Any, batch: Mapping[str, Tensor], width: int
) -> Iterator[tuple[str, Any, bool, str]]:
    """Further options, and whether they are heeded or refused."""
    first = [greedy(bench, row, 1, bench.eos_token_id)[0][0] for row in bench.even_rows]
    rows = len(bench.even_rows)

    def generated(**options: Any) -> Tensor | None:
        try:
            found: Tensor = module.it_generate(batch, **{"max_new_tokens": 3, "do_sample": False, **options}).sequences
        except Exception:  # noqa: BLE001 - a refusal, of whatever kind
            return None
        return found

    two = generated(num_return_sequences=2, do_sample=True)
    yield "num_return_sequences", 2, two is None or len(two) == 2 * rows, f"{2 * rows} sequences for {rows} prompts"
    ended = generated(eos_token_id=first[0])
    new = None if ended is None else ended[0, width:].tolist()
    yield (
        *("eos_token_id", first[0]),
        new is None or (new[0] == first[0] and set(new[1:]) <= {first[0], bench.pad_token_id}),
        "a row that ends with this token",
    )
    without = generated(suppress_tokens=first)
    yield (
        *("suppress_tokens", first),
        without is None or not set(without[:, width].tolist()) & set(first),
        "a first token that is none of them",
    )
    unknown = generated(an_option_that_nobody_knows=1)
    yield "an_option_that_nobody_knows", 1, unknown is None, "an error"


def _draw(bench: Bench, row: Tensor, seed: int, **options: float) -> Tensor:
    """The token that each of many equal rows draws."""
    batch = bench.padded([row] * DRAWS, "left")
    torch.manual_seed(seed + bench.seed)  # put back after the rule
    found = bench.module.it_generate(batch, max_new_tokens=1, do_sample=True, **options).sequences
    return found[:, len(row)]


def _temperature_for(logits: Tensor, share: float) -> float:
    """The temperature at which the most probable token has a given probability."""
    low, high = 1e-3, 1e4
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float((logits / middle).softmax(-1).max()) > share else (low, middle)
    return low

"""The rule of edits within edits: all of them are made."""

from __future__ import annotations

import torch

from interpretune.activations.hook_names import LOGITS, aliases
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.places import offered
from interpretune.testing.plain_edits import edited_logits, shrunk, turned
from interpretune.testing.rule import rule
from interpretune.testing.workbench import Bench


@rule(stack=True, after=["edits-are-made"])
@torch.no_grad()
def nested_edits_add_up(bench: Bench) -> None:
    """Edits of a block, of the blocks around it and of a forward in it are all made, the outer ones first."""
    backend, inputs, names = bench.backend, bench.even_inputs(), offered(bench)
    turned_round = inputs.select(torch.tensor([1, 0], device=inputs.tokens.device))  # a batch that was not run before
    for index, name in enumerate(names):
        other = names[(index + len(names) // 2) % len(names)]
        both = edited_logits(bench, [(name, shrunk), (name, turned)])
        apart = edited_logits(bench, [(name, shrunk), (other, turned)])
        with backend.counted_hooks({name: shrunk}):
            same(
                backend.forward(inputs, {name: turned}), both, f"logits with an edit at {name} in a block with another"
            )
            same(
                backend.forward(inputs, {other: turned}), apart, f"logits with an edit at {other} in a block of {name}"
            )
            _, cache = backend.run_with_cache(turned_round, [name])
            with backend.counted_hooks({name: turned}):
                same(backend.forward(inputs, {}), both, f"logits in two blocks with edits at {name}")
            with backend.hooked({other: turned}):
                same(backend.forward(inputs, {}), apart, f"logits in a block of {other} in one of {name}")
            once = backend.forward(inputs, {})
        same(
            once, edited_logits(bench, [(name, shrunk)]), f"logits in a block with an edit at {name}, after inner ones"
        )
        clean = [reference.activations_of(bench.reference, row, [name])[name] for row in bench.even_rows.flip(0)]
        same(cache[name], shrunk(torch.stack(clean)), f"activations at {name} in a block with an edit there")
        alias = next(aliases(name), None)
        if alias is not None and name != LOGITS:
            found = backend.forward(inputs, {name: shrunk, alias: turned})
            same(found, both, f"logits with edits at {name} and at {alias}, the same place")

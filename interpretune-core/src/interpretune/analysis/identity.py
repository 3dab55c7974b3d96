"""What an analysis depends on, by content: data, task, stack and session."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from attrs import frozen

from interpretune.analysis.memory_estimate import slots_of
from interpretune.backends.identity import Identity, identify_model, versions
from interpretune.errors import DataError
from interpretune.hashing.code_origin import CORE
from interpretune.hashing.content_hash import ContentHash, content_hash, hash_of
from interpretune.hashing.packages import identify_packages
from interpretune.system.model_lock import model_lock

if TYPE_CHECKING:
    from interpretune.session.module import ITModule


@frozen
class DataIdentity:
    """The batches of a split, as the data module gives them.

    Attributes:
        fingerprint: SHA-256 of all their content, 64 hexadecimal digits.
        batches: The same of each batch.
        sizes: Number of examples in each batch.
        slots: The same times the tokens of its longest row.
    """

    fingerprint: str
    batches: tuple[str, ...]
    sizes: tuple[int, ...]
    slots: tuple[int, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.sizes))

    def examples(self, batch_idx: int) -> range:
        """Positions in the split of a batch's examples."""
        return range(self._ends[batch_idx] - self.sizes[batch_idx], self._ends[batch_idx])


def identify_data(batches: Iterable[Mapping[str, Any]]) -> DataIdentity:
    """Go through batches once and hash what is in them; ``DataError`` if one has no labels."""
    hashes, sizes, slots = list[str](), list[int](), list[int]()
    for batch in batches:
        sizes.append(count_examples(batch))
        slots.append(slots_of(batch, sizes[-1]))
        hashes.append(identify_batch(batch))
    fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return DataIdentity(fingerprint, tuple(hashes), tuple(sizes), tuple(slots))


def identify_batch(batch: Mapping[str, Any]) -> str:
    """SHA-256 of all that a batch holds; ``PlanError`` if some of it cannot be hashed."""
    return hash_of(dict(batch), "The batch")


def count_examples(batch: Mapping[str, Any]) -> int:
    """Number of examples in a batch; ``DataError`` if it has no labels."""
    if "labels" not in batch:
        raise DataError(f"A batch to analyse needs the entry 'labels'; this one has {', '.join(map(str, batch))}.")
    return len(batch["labels"])


def identify_task(module: ITModule) -> Identity:
    """What a module makes of logits, and all that operations may read of it.

    Its answer columns, special tokens, the code that reduces and scores logits, and what somebody set on it.
    """
    parts = {name: getattr(module, name, None) for name in ("standardize_logits", "labels_to_ids", "loss_fn")}
    parts["module"] = module
    columns = module.answer_columns
    code = content_hash(parts, "The module")
    return Identity(
        {
            "answer_columns": str(None if columns is None else columns.tolist()),
            "special_tokens": str(module.backend.special_token_ids().tolist()),
            "code": code.sha256,
        },
        code.unknown,
    )


def identify_stack(module: ITModule) -> Identity:
    """The code of the stack, where no version tells it, and its adapters and the backend with their settings."""
    assert module.context is not None, "a composed module has a context"
    packages = {item.installed.target.partition(":")[0].partition(".")[0] for item in module.context.adapters}
    code, unknown = identify_packages({CORE, *packages})
    plugins = [item.plugin for item in module.context.adapters]
    content = content_hash([plugins, module.backend], "The stack")
    return Identity({"packages": code, "sha256": content.sha256}, (*unknown, *content.unknown))


def identify_session(module: ITModule) -> ContentHash:
    """All that activations of a session's model depend on, but for the batches: model, stack, and libraries.

    Under its hash an adapter finds again what it made of activations (a trained latent model, for one).
    """
    with model_lock(module.model):
        model, stack = identify_model(module.backend, module_source(module)), identify_stack(module)
    parts = {"model": model.about["sha256"], "stack": stack.about, "versions": library_versions(module)}
    found = content_hash(parts, "The session")
    return ContentHash(found.sha256, (*model.unknown, *stack.unknown, *found.unknown))


def library_versions(module: ITModule) -> dict[str, str]:
    """Versions of the libraries whose code takes part: the stack's distributions, core, and what they compute with."""
    assert module.context is not None, "a composed module has a context"
    stacked = {item.installed.distribution: item.installed.version for item in module.context.adapters}
    return {**stacked, **versions()}


def module_source(module: ITModule) -> str:
    """Path or hub id that a module's model was loaded from."""
    return str(module.it_cfg.model_name_or_path)

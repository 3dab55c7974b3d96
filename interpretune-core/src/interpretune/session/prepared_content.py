"""What prepared data depend on: source files, tokenizer, configurations, and the code that makes prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interpretune.hashing.code_origin import CORE
from interpretune.hashing.code_owner import own_bases
from interpretune.hashing.content_hash import ContentHash, content_hash
from interpretune.hashing.packages import identify_packages, version_or_unknown
from interpretune.plugins.discovery import GivenAdapter
from interpretune.session.module_state import attributes_set

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule

WITHOUT_EFFECT = frozenset(
    {
        *("data", "rows", "answers", "correct"),  # where rows come from; their content counts
        "tokenizer",  # the data module's copy counts
        *("cache_dir", "dataset_path"),  # where they go to
        *("force_prepare_data", "train_batch_size", "eval_batch_size", "dataloader_kwargs"),
    }
)
"""Fields of the configuration that change no prepared row."""

KNOWN_OTHERWISE = frozenset({"itdm_cfg", "tokenizer", "data_collator", "dataset", "module", "trainer"})
"""Attributes of the data module that are counted by name, that come later, or that hold the session."""


def prepared_content(datamodule: ITDataModule) -> ContentHash:
    """Hash of everything that changes the data a data module prepares, and the parts of it that cannot be read."""
    cfg, kind = datamodule.itdm_cfg, type(datamodule)
    stacked = () if datamodule.context is None else datamodule.context.adapters
    packages = {item.installed.target.partition(":")[0].partition(".")[0] for item in stacked}
    code, edited = identify_packages({CORE, *packages})
    model = None if datamodule.module is None else datamodule.module.model
    parts: dict[str, Any] = {
        "class": kind.__qualname__,
        "code": own_bases(kind),
        "attributes": attributes_set(datamodule, KNOWN_OTHERWISE),
        "tokenizer": datamodule.tokenizer,
        "itdm_cfg": {name: item for name, item in sorted(vars(cfg).items()) if name not in WITHOUT_EFFECT},
        "configuration's code": own_bases(type(cfg)),
        "columns": sorted(datamodule.kept_columns(model)),
        "source": datamodule.source_fingerprint(),
        "versions": {
            name: version_or_unknown(name) for name in ("datasets", "interpretune-core", "tokenizers", "transformers")
        },
        "packages": code,
        "adapters in memory": [item.plugin for item in stacked if isinstance(item.installed, GivenAdapter)],
    }
    found = content_hash(parts, "The prepared data")
    return ContentHash(found.sha256, (*edited, *found.unknown))

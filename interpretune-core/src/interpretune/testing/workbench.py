"""The workbench of the kit: one adapter, and what it takes to try it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.config.datamodule import ITDataModuleConfig, PromptConfig
from interpretune.config.module import GenerativeClassificationConfig, ITConfig
from interpretune.config.shared import ITSharedConfig
from interpretune.errors import InterpretuneError
from interpretune.plugins.declaration import AdapterDeclaration, Level
from interpretune.plugins.discovery import InstalledAdapter, registered_adapters
from interpretune.plugins.stack import ExecutionContext, build_context
from interpretune.session.session import ITSession, ITSessionConfig, it_init, it_session_end
from interpretune.testing.rule import RuleHidden, RuleSkipped
from interpretune.testing.tiny_models import nli_rows, write_rows
from interpretune.testing.user_classes import UserDataModule, UserModule

if TYPE_CHECKING:
    from interpretune.testing.conformance import AdapterConformance

Made = TypeVar("Made")

BATCH_SIZE = 3
N_ROWS = 7
"""Seven rows in batches of three: the last batch has one."""
N_BATCHES = -(-N_ROWS // BATCH_SIZE)

FORM = (
    *("name-is-unique", "importable", "an-instance-with-a-declaration", "contract-version", "hook-signatures"),
    *("requirements-installed", "stacks-alone"),
)
"""Rules of what an adapter must be before it can be stacked, in the order in which they are checked."""

N_TRAINING_ROWS = 12
CONFIG = "config.json"
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}


class Bench:
    """One adapter, a tiny model, and sessions of them; what several rules need is made once.

    Attributes:
        suite: What the adapter's author says of it.
        adapter: Its name.
        folder: Everything that is written is written here.
        broken: Ids of rules that the adapter breaks, and of those that were not checked as they build on them, each
            with the broken rules that it is because of.
        notes: What one rule finds out for another.
    """

    def __init__(self, suite: AdapterConformance, folder: Path) -> None:
        self.suite = suite
        self.adapter = suite.adapter
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        suite.folder = folder / "suite"
        suite.folder.mkdir(exist_ok=True)
        self.broken: dict[str, tuple[str, ...]] = {}
        self.notes: dict[str, Any] = {}
        self._errors: dict[str, BaseException] = {}
        self._numbers = itertools.count()
        self._sessions: list[ITSession] = []

    def lacking(self, reason: str, rules: Sequence[str]) -> RuleSkipped:
        """What to raise where something is missing that a rule needs; a broken one of ``rules`` hides the rule."""
        because = tuple(dict.fromkeys(root for id_ in rules for root in self.broken.get(id_, ())))
        return RuleHidden(reason, because) if because else RuleSkipped(reason)

    def _once(self, what: str, make: Callable[[], Made]) -> Made:
        """What something makes; where it failed for one rule, it fails for the others without being tried again."""
        if what not in self._errors:
            try:
                return make()
            except (InterpretuneError, SystemExit) as error:
                self._errors[what] = error
        raise self._errors[what].with_traceback(None)

    # ----------------------------------------------------------------------------------------------------- the adapter

    @functools.cached_property
    def installed(self) -> InstalledAdapter:
        """Where the adapter comes from.

        Raises:
            RuleSkipped: No distribution registers it, or several do.
        """
        found = {item.distribution: item for item in registered_adapters() if item.name == self.adapter}
        if len(found) != 1:
            raise self.lacking(f"the adapter has {len(found) or 'no'} owners: see the rule name-is-unique", FORM[:1])
        return next(iter(found.values()))

    @functools.cached_property
    def plugin(self) -> Any:
        """The adapter object.

        Raises:
            RuleSkipped: It cannot be imported.
        """
        try:
            return self._once("import", self.installed.load)
        except (InterpretuneError, SystemExit) as error:
            raise self.lacking("the adapter cannot be imported: see the rule importable", FORM[:2]) from error

    @property
    def level(self) -> Level:
        """The level that it declares."""
        return self.declaration.level

    @functools.cached_property
    def declaration(self) -> AdapterDeclaration:
        """What it declares.

        Raises:
            RuleSkipped: It has no declaration.
        """
        declaration = getattr(self.plugin, "declaration", None)
        if not isinstance(declaration, AdapterDeclaration):
            raise self.lacking("the adapter has no declaration: see the rule an-instance-with-a-declaration", FORM[:3])
        return declaration

    @property
    def seed(self) -> int:
        """Seed of all that is drawn."""
        return self.suite.seed

    @property
    def stack(self) -> tuple[str, ...]:
        """Names of the adapters to stack."""
        return tuple(self.suite.stack) or (self.adapter,)

    @functools.cached_property
    def context(self) -> ExecutionContext:
        """The execution context.

        Raises:
            RuleSkipped: The adapters cannot be stacked.
        """
        try:
            return self._once("stack", lambda: build_context(self.stack))
        except (InterpretuneError, SystemExit) as error:
            reason = f"{', '.join(self.stack)} cannot be stacked ({type(error).__name__}): see the first rules"
            raise self.lacking(reason, FORM) from error

    # ------------------------------------------------------------------------------------------------------- sessions

    @functools.cached_property
    def model_folder(self) -> Path:
        """A tiny model with its tokenizer."""
        folder = self.folder / "model"
        folder.mkdir(parents=True, exist_ok=True)
        self.suite.write_tiny_model(folder)
        return folder

    def new_session(self, *, init: bool = True, **options: Any) -> ITSession:
        """A session of its own, which is ended with the others if no rule ends it."""
        session = ITSession(self.session_cfg(**options))
        self._sessions.append(session)
        if init:
            it_init(**session)
        return session

    def session_cfg(
        self,
        module_cls: type = UserModule,
        datamodule_cls: type = UserDataModule,
        model_folder: Path | None = None,
        own_cache: bool = False,
        **settings: Any,
    ) -> ITSessionConfig:
        """The configuration of a session.

        Args:
            module_cls: The user's module.
            datamodule_cls: The user's data module.
            model_folder: Another model.
            own_cache: Prepare the data anew; otherwise the first session of a kind prepares them for the others.
            **settings: Fields of ``ITConfig``.
        """
        self.context  # noqa: B018 - refuses what cannot be stacked, before anything is written
        data = {split: self.folder / f"{split}.jsonl" for split in ("train", "validation")}
        if not data["train"].exists():
            write_rows(data["train"], nli_rows(N_TRAINING_ROWS, seed=2 * self.seed + 1))
            write_rows(data["validation"], nli_rows(N_ROWS, seed=2 * self.seed))
        return ITSessionConfig(
            adapter_ctx=self.stack,
            module_cls=module_cls,
            datamodule_cls=datamodule_cls,
            shared_cfg=ITSharedConfig(
                model_name_or_path=str(model_folder or self.model_folder),
                cache_dir=self.folder / (f"cache-{next(self._numbers)}" if own_cache else "cache"),
            ),
            datamodule_cfg=ITDataModuleConfig(
                data=data,
                text_fields=("premise", "hypothesis"),
                num_labels=2,
                prompt_cfg=PromptConfig(ctx_question_join=" Question : "),
                cust_tokenization_pattern=self.suite.prompt_pattern,
                train_batch_size=BATCH_SIZE,
                eval_batch_size=BATCH_SIZE,
            ),
            module_cfg=ITConfig(
                **{
                    "generative_step_cfg": GenerativeClassificationConfig(answers=self.suite.answers),
                    "device": "cpu",
                    **self.suite.module_settings(),
                    **settings,
                }
            ),
        )

    def other_model(self, what: str, write: Callable[[Path], None]) -> Path:
        """A folder with another tiny model.

        Raises:
            RuleSkipped: The adapter loads no such model.
        """
        folder = self.folder / what.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        try:
            write(folder)
        except NotImplementedError as error:
            raise RuleSkipped(f"no model with {what}: {error}") from error
        return folder

    def edited_model(
        self, name: str, change: Callable[[dict[str, Any]], Mapping[str, Any]], what: str, *more_files: str
    ) -> Path:
        """A copy of the tiny model with other settings in its ``config.json``, and in further files where they are.

        Raises:
            RuleSkipped: It has no ``config.json``.
        """
        folder = self.folder / name
        shutil.copytree(self.model_folder, folder, dirs_exist_ok=True)
        if not (folder / CONFIG).exists():
            raise RuleSkipped(f"the tiny model has no {CONFIG} in which {what} could be set")
        for file in (folder / item for item in (CONFIG, *more_files)):
            if file.exists():
                about = json.loads(file.read_text(encoding="utf-8"))
                file.write_text(json.dumps({**about, **change(about)}), encoding="utf-8")
        return folder

    @functools.cached_property
    def session(self) -> ITSession:
        """A session that rules share; none may change it.

        Raises:
            RuleSkipped: No session can be made.
        """
        if "session-runs" in self.broken:
            raise self.lacking("sessions do not run: see the rule session-runs", ["session-runs"])
        try:
            return self.new_session()
        except RuleSkipped:
            raise
        except Exception as error:  # reported once, by the rule that is about it
            raise RuleSkipped(
                f"no session can be made ({type(error).__name__}: {error}): see the rule session-runs"
            ) from error

    @property
    def module(self) -> Any:
        """The module of the shared session."""
        return self.session.module

    @property
    def backend(self) -> Any:
        """The backend of the shared session."""
        return self.module.backend

    @property
    def capabilities(self) -> frozenset[str]:
        """What that backend offers."""
        return frozenset(self.backend.capabilities)

    @functools.cached_property
    def reference(self) -> Any:
        """The plain Hugging Face model of the folder."""
        return self.suite.reference_model(self.model_folder)

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position."""
        return int(self.reference.config.vocab_size)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.reference.config.hidden_size)

    @property
    def special(self) -> list[int]:
        """Ids of the tokenizer's special tokens."""
        return sorted(set(self.session.datamodule.tokenizer.all_special_ids))

    def end_sessions(self) -> None:
        """End every session that is alive, the shared one too; where one fails to end, the others are ended still."""
        vars(self).pop("session", None)
        with contextlib.ExitStack() as endings:
            while self._sessions:
                session = self._sessions.pop()
                if session.module.initialised:
                    endings.callback(it_session_end, **session)

    def close(self) -> None:
        """End all sessions, unless it is known that they do not end, and remove everything that was written."""
        try:
            if not {"session-runs", "sessions-end"} & self.broken.keys():
                self.end_sessions()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---------------------------------------------------------------------------------------------------------- batches

    @functools.cached_property
    def rows(self) -> list[Tensor]:
        """Tokens of unpadded rows of unequal length, a very short one and one with BOS in its middle among them."""
        rows = [torch.tensor(row) for row in self.session.datamodule.dataset["validation"]["input_ids"]]
        bos = self.session.datamodule.tokenizer.bos_token_id
        middle = rows[2] if bos is None else torch.cat([rows[2][:5], torch.tensor([bos]), rows[2][5:]])
        return [rows[0], rows[4][:2], middle, rows[3]]

    @functools.cached_property
    def even_rows(self) -> Tensor:
        """Rows of one length, which need no padding, ``[2, pos]``."""
        rows = [self.rows[0], self.rows[2]]
        length = min(map(len, rows))
        return torch.stack([row[-length:] for row in rows])

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's id of padding; a tiny model's is that of BOS, so that masks cannot be read from tokens."""
        return int(self.session.datamodule.tokenizer.pad_token_id)

    @property
    def eos_token_id(self) -> int:
        """The tokenizer's id of the end."""
        return int(self.session.datamodule.tokenizer.eos_token_id)

    def padded(self, rows: Sequence[Tensor], side: str) -> dict[str, Tensor]:
        """A batch of rows with padding on one side, on the module's device."""
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), self.pad_token_id)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            tokens[i, where] = row
            mask[i, where] = 1
        return self.on_device({"input_ids": tokens, "attention_mask": mask})

    def even_batch(self) -> dict[str, Tensor]:
        """A batch without padding."""
        return self.padded(list(self.even_rows), "left")

    def even_inputs(self) -> ModelInputs:
        """The same, as analyses see it."""
        return ModelInputs.from_batch(self.even_batch())

    def on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch where the module is."""
        return {name: value.to(self.module.device) for name, value in batch.items()}

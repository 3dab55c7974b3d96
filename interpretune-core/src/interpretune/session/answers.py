"""Tokens of answers: the same for all rows, or of each row its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpretune.errors import ConfigurationError, DataError
from interpretune.models.answer_tokens import logits_of, single_token_ids, warn_of_other_tokens
from interpretune.models.padding import tokens_of
from interpretune.models.row_columns import ANSWER_TOKENS, ROW
from interpretune.operations.measure import AnswerReader
from interpretune.session.labels import LABELS, answer_ids, check_labels_have_answers

if TYPE_CHECKING:
    from interpretune.config.module import ITConfig
    from interpretune.session.module import ITModule


class ModuleAnswers:
    """What a session's module says of answers, and makes of logits.

    Attributes:
        it_cfg: The composed configuration.
    """

    it_cfg: ITConfig

    @property
    def answer_token_ids(self) -> Tensor:
        """Token of each label's answer, ``[num_labels]``.

        Read from ``generative_step_cfg.answers``, from rows of a question that all have the same, or from
        ``it_cfg.entailment_mapping_indices`` if a user's configuration has it.

        Raises:
            ConfigurationError: None of these says them.
        """
        ids = self._same_answers
        if ids is None:
            raise ConfigurationError(
                "The tokens of the answers are unknown. Set GenerativeClassificationConfig(answers=(' Yes', ' No')), "
                "in the order of the labels, and call it_init(**session). Where answers differ by row, "
                "answer_tokens(batch) has them."
            )
        return ids

    @property
    def _same_answers(self) -> Tensor | None:
        own: Tensor | None = getattr(self, "_answer_token_ids", None)
        return own if own is not None else getattr(self.it_cfg, "entailment_mapping_indices", None)

    def answer_tokens(self, batch: Mapping[str, Any]) -> Tensor:
        """Token of each answer of each row, ``[batch, k]``; -1 where a row has fewer than ``k`` answers.

        The correct one is at the index that ``labels`` say.

        Args:
            batch: As the data module gives it, with or without labels.

        Raises:
            ConfigurationError: The rows have no answers, and the module names none.
            DataError: An answer has several tokens.
        """
        own = own_answers(batch)
        return self.answer_token_ids.expand(len(tokens_of(batch)[1]), -1) if own is None else own

    def differing_answers(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The same where answers differ by row; None: all rows have the same."""
        return self.answer_tokens(batch) if self._same_answers is None and ANSWER_TOKENS in batch else None

    def labels_to_ids(self, labels: Tensor, answers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Answer tokens of labels ``[batch]``, and the labels themselves, int64.

        Args:
            labels: ``[batch]``.
            answers: Of each row, as ``answer_tokens`` gives them; None: all rows have the same.

        Raises:
            DataError: A label has no answer.
        """
        if answers is None:
            answers = self.answer_token_ids.expand(len(labels), -1)
        tokens = answers.to(labels.device)
        ids = answer_ids(labels, (tokens >= 0).sum(-1))
        return tokens.gather(-1, ids.unsqueeze(-1)).squeeze(-1), ids

    def standardize_logits(self, logits: Tensor | tuple[Tensor, ...], answers: Tensor | None = None) -> Tensor:
        """Reduce logits to the answers.

        Args:
            logits: ``[batch, vocab]``, ``[batch, pos, vocab]``, or a tuple of ``[batch, vocab]``.
            answers: Of each row, as ``answer_tokens`` gives them; None: all rows have the same.

        Returns:
            ``[batch, pos, num_labels]``; minus infinity where a row has fewer answers than others.
        """
        if isinstance(logits, tuple):
            logits = torch.stack(logits, dim=1)
        if logits.ndim == 2:
            logits = logits.unsqueeze(1)
        if answers is not None:
            return logits_of(logits, answers)
        return logits.index_select(-1, self.answer_token_ids.to(logits.device))

    @property
    def answer_columns(self) -> Tensor | None:
        """Ids of the only logits that ``standardize_logits`` reads, ``[num_labels]``.

        None if a class standardizes logits in its own way, which may read all of them, or if answers differ by row.
        """
        return None if self._same_answers is None else self.columns_of(self.answer_token_ids)

    def columns_of(self, answers: Tensor) -> Tensor | None:
        """Ids of the only logits that ``standardize_logits`` reads for some answers, ``[c]``.

        None if a class standardizes logits in its own way, which may read all of them.

        Args:
            answers: Of all rows, ``[num_labels]``, or of each, ``[batch, k]``, -1 beyond the last.
        """
        if type(self).standardize_logits is not ModuleAnswers.standardize_logits:
            return None
        return answers if answers.ndim == 1 else answers[answers >= 0].unique()


def answers_of_all_rows(module: ITModule) -> list[int] | None:
    """Token of each answer, where all rows have the same: as the configuration says, or as the rows do.

    None: the answers differ by row, have several tokens, or are not known.

    Raises:
        ConfigurationError: The answers are said twice, or are not one for each label.
        DataError: A label has no answer.
        TokenizationError: An answer of the configuration is not one token.
    """
    datamodule, answers = module.require_datamodule(), module.it_cfg.generative_step_cfg.answers
    splits = [item for item in datamodule.dataset.values() if ROW in getattr(item, "column_names", ())]
    if not answers:
        return _same_in_all(splits)
    if splits:
        raise ConfigurationError(
            f"GenerativeClassificationConfig.answers is {tuple(answers)}, and the rows of the data module have answers "
            "of their own. Leave one of the two out: answers, or ITDataModuleConfig.rows."
        )
    num_labels = datamodule.itdm_cfg.num_labels
    if num_labels is not None and len(answers) != num_labels:
        raise ConfigurationError(
            f"GenerativeClassificationConfig.answers has {len(answers)} words, {tuple(answers)}, and "
            f"ITDataModuleConfig.num_labels is {num_labels}. Name one answer for each label, in the labels' order."
        )
    check_labels_have_answers(datamodule.dataset, answers)
    ids = single_token_ids(datamodule.tokenizer, answers)
    if getattr(module, "_answer_token_ids", None) is None:  # a session says it once
        warn_of_other_tokens(datamodule.tokenizer, answers, ids, datamodule.dataset)
    return ids


def answer_words(module: ITModule) -> tuple[str, ...]:
    """The answers in words, where all rows have the same; else none."""
    words = tuple(module.it_cfg.generative_step_cfg.answers)
    if words or module._same_answers is None or module.datamodule is None:
        return words
    splits = [item for item in module.datamodule.dataset.values() if ROW in getattr(item, "column_names", ())]
    return tuple(json.loads(splits[0][0][ROW])["answers"]) if splits else ()


def _same_in_all(splits: list[Any]) -> list[int] | None:
    found = {tuple(map(tuple, answers)) for split in splits for answers in split[ANSWER_TOKENS]}
    if len(found) != 1 or any(len(answer) > 1 for answer in next(iter(found))):
        return None
    return [answer[0] for answer in next(iter(found))] or None


def own_answers(batch: Mapping[str, Any]) -> Tensor | None:
    """Token of each answer of each row of a batch, ``[batch, k]``, -1 beyond the last; None: they have none.

    Raises:
        DataError: An answer has several tokens, or a row has no answers.
    """
    answers: Tensor | None = batch.get(ANSWER_TOKENS)
    if answers is None:
        return None
    longer = (answers[..., 1:] >= 0).any(-1).any(-1).nonzero().flatten().tolist()
    if longer:
        raise DataError(
            f"Row {longer[0]} of the batch has an answer of several tokens, and steps and the modes of analyses look "
            "at the token after the prompt alone. Ask with a question, which reads whole answers: "
            "it.effects(session.module.backend, ...), or an analysis with units in a configuration file."
        )
    if lacking := (answers[..., 0] < 0).all(-1).nonzero().flatten().tolist():
        raise DataError(
            f"Row {lacking[0]} of the batch has no answers, and steps and the modes of analyses count them. Give it "
            "some, or ask kl or loss with a question: it.effects(session.module.backend, ...), or an analysis with "
            "units in a configuration file."
        )
    return answers[..., 0]


def take_labels(module: ITModule, batch: MutableMapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Take the labels out of a batch: tokens of the correct answers, ``[batch]``, and labels, ``[batch]``.

    Raises:
        DataError: A label has no answer, or an answer has several tokens.
    """
    labels, answers = batch.pop(LABELS), module.differing_answers(batch)
    return module.labels_to_ids(labels) if answers is None else module.labels_to_ids(labels, answers)


def reader_of(module: ITModule, batch: Mapping[str, Any]) -> AnswerReader:
    """What reads the logits of a batch's answers as the module does, or those of the rows' own answers.

    Raises:
        DataError: An answer has several tokens, or a row has no answers.
    """
    own = module.differing_answers(batch)

    def reduce(logits: Tensor, ids: Tensor | None) -> Tensor:
        of_rows = () if ids is None else (ids,)  # a class that takes logits only is of answers of all rows
        return module.standardize_logits(logits, *of_rows)[:, -1]

    return AnswerReader(own, module.answer_columns if own is None else module.columns_of(own), reduce)

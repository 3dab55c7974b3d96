from interpretune.questions.batching import AnsweredBatch, QuestionBatch, batches, with_answers
from interpretune.questions.encoding import EncodedRow, encode
from interpretune.questions.prompt_row import PromptRow
from interpretune.questions.sources import read_rows

__all__ = [
    "AnsweredBatch",
    "EncodedRow",
    "PromptRow",
    "QuestionBatch",
    "batches",
    "encode",
    "read_rows",
    "with_answers",
]

from interpretune.questions.encoding import EncodedRow, encode
from interpretune.questions.prompt_row import PromptRow

__all__ = ["EncodedRow", "PromptRow", "encode"]

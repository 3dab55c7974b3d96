from interpretune.questions.prompt_row import PromptRow

__all__ = ["PromptRow"]

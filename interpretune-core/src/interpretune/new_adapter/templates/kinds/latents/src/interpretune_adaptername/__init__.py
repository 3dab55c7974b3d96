"""Dictionaries of latents for interpretune."""

from interpretune_adaptername.config import DictionariesConfig, NewDictionary, SavedDictionary

__all__ = ["DictionariesConfig", "NewDictionary", "SavedDictionary"]

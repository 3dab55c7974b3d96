"""Namespaces that load their names when they are used."""

import pytest

import interpretune
from interpretune import analysis, operations


def test_a_name_stays_in_its_namespace():
    assert analysis.AnalysisCfg is analysis.AnalysisCfg
    assert "AnalysisCfg" in vars(analysis)
    assert not hasattr(interpretune, "AnalysisCfg")


def test_modules_of_a_package_are_names_too():
    assert operations.latent_analyses.__name__ == "interpretune.operations.latent_analyses"


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'interpretune.analysis' has no attribute 'AnalysisCfgs'"):
        analysis.AnalysisCfgs  # noqa: B018

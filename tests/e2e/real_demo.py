"""The demo on the real model, whose latents must be faithful and whose effects must agree: ``make soak-demo``."""

import json
import os

from interpretune.cli.main import main


def test_the_real_model_gives_faithful_latents_and_agreeing_effects(tmp_path, capsys, monkeypatch):
    cache = os.environ.get("INTERPRETUNE_TEST_CACHE", str(tmp_path / "cache"))
    arguments = ["demo", "--json", "--limit", "4", "--batch-size", "2", "--training-scale", "0.4"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--cache-dir", cache]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["stack"] == ["core", "transformer_lens", "sae_lens"]
    assert all(item["loss_recovered"] > 0.9 for item in summary["quality"])
    assert all(r > 0.8 for r in summary["ablation_attribution_pearson"].values())
    assert summary["ablation_cost"]["replayed"] is True
    assert summary["ablation_cost"]["max_abs_error"] < 1e-4

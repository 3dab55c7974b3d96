"""The adapter keeps every rule of the contract, and does what it is for."""

import interpretune as it
import pytest
import torch

from interpretune_adaptername import SavedDictionary
from interpretune_adaptername.conformance import AdapterNameConformance
from interpretune_adaptername.dictionary import WEIGHTS, Dictionary
from interpretune_adaptername.loading import find_saved, load_dictionary


class TestAdapterName(AdapterNameConformance):
    def test_a_saved_dictionary_is_the_same_in_another_session(self, conformance_bench, tmp_path):
        [dictionary] = conformance_bench.module.latent_models
        dictionary.save_to(tmp_path)
        session = conformance_bench.new_session(adapter_name_cfgs=[SavedDictionary(path=tmp_path)])
        [loaded] = session.module.latent_models
        assert loaded.hook_point == dictionary.hook_point
        activations = torch.randn(2, 3, dictionary.d_in)
        torch.testing.assert_close(loaded.encode(activations), dictionary.encode(activations), rtol=0, atol=0)
        it.it_session_end(**session)


def test_decoder_is_linear_in_the_latents():
    dictionary = Dictionary("layers.0.resid_post", d_in=8, d_sae=16)
    latents = dictionary.encode(torch.randn(5, 8))
    ablated = latents.clone()
    ablated[:, 3] = 0
    changed = dictionary.decode(latents) - dictionary.decode(ablated)
    expected = latents[:, 3:4] * dictionary.decoder_rows(torch.tensor([3]))
    torch.testing.assert_close(changed, expected)


def test_a_damaged_folder_is_refused_in_words(tmp_path):
    assert find_saved(tmp_path) == []
    Dictionary("layers.0.resid_post", d_in=8, d_sae=16).save_to(tmp_path)
    assert find_saved(tmp_path) == find_saved(tmp_path, layers=[0]) == [tmp_path]
    assert find_saved(tmp_path, layers=[1]) == find_saved(tmp_path, ids=["another"]) == []
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(it.LatentModelError, match="cannot be read as a dictionary of adapter_name"):
        load_dictionary(tmp_path)

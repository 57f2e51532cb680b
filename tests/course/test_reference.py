"""course.reference: the reference opens a folder in silence, and may speak again afterwards."""

from transformers import MllamaForConditionalGeneration
from transformers.utils import logging

from llamamm import save_pretrained
from llamamm.course.reference import reference_model
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel


def test_the_reference_opens_a_folder_in_silence(tmp_path, capsys):
    save_pretrained(MllamaModel(MllamaConfig.tiny()), tmp_path)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = reference_model(MllamaForConditionalGeneration, tmp_path)
    out, err = capsys.readouterr()
    assert not model.training and out + err == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before

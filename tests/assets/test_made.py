"""made: every kind of asset that is data has its writer."""

from llamamm.assets.catalogue import ASSETS, KINDS
from llamamm.assets.made import MADE


def test_every_kind_is_made_here_or_converted_or_itself():
    assert set(KINDS) - set(MADE) == {"llama", "vision", "audio", "file"} and set(MADE) < set(KINDS)
    assert {asset.kind for asset in ASSETS.values()} == set(KINDS)


def test_what_is_made_can_be_credited():
    assert all("LICENSE.txt" in made.files and callable(made.write) for made in MADE.values())

"""One choice of sources for every data module: the same words, errors and look-up of the cache."""

import warnings
from functools import partial

import pytest

from datamodules.cached import CachedDataModule
from datamodules.errors import DataError
from datamodules.graphs.ising import IsingDataModule
from datamodules.graphs.lrgb import LRGBDataModule
from datamodules.graphs.stars import StarsDataModule
from datamodules.graphs.zinc import ZINCDataModule
from datamodules.images.cifar import CIFARDataModule
from datamodules.images.imagenet import ImageNetDataModule
from datamodules.text.corpus import TextCorpusDataModule
from datamodules.text.glue import GLUEDataModule

MODULES = {
    "stars": (StarsDataModule, ["generated"]),
    "ising": (IsingDataModule, ["generated"]),
    "zinc": (ZINCDataModule, ["official"]),
    "peptides": (partial(LRGBDataModule, "peptides-func"), ["official", "generated"]),
    "contacts": (partial(LRGBDataModule, "pcqm-contact"), ["official"]),
    "glue": (partial(GLUEDataModule, "rte"), ["official", "variant", "generated"]),
    "corpus": (TextCorpusDataModule, ["file", "datasets", "generated"]),
    "cifar": (CIFARDataModule, ["official", "subset", "generated"]),
    "imagenet": (
        partial(ImageNetDataModule, "pets", 3, 8),
        ["official", "subset", "generated"],
    ),
}
GENERATED = [name for name, (_, sources) in MODULES.items() if "generated" in sources]


def make(name: str, **options) -> CachedDataModule:
    return MODULES[name][0](**options)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_takes_its_sources_and_auto(name):
    sources = MODULES[name][1]
    assert list(make(name).sources) == sources
    for source in ("auto", *sources):
        data = make(name, source=source)
        assert data.source == source
        assert data.source_used is None
    several = "one of " if len(sources) > 1 else ""
    sentence = f"^There is no data source 'c5': set data.source to auto or {several}"
    with pytest.raises(DataError, match=sentence + ", ".join(sources) + r"\.$"):
        make(name, source="c5")


@pytest.mark.parametrize("name", MODULES)
def test_without_any_data_auto_generates_or_says_what_is_missing(name, tmp_path):
    data = make(name, cache_dir=tmp_path)
    if name not in GENERATED:
        with pytest.raises(DataError, match="set DATA_DIR"):
            data.prepare_data()
        return
    data = make(name, cache_dir=tmp_path, generated_size=(30, 9, 9))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        data.prepare_data()
    loud = [w for w in caught if "USING GENERATED DATA" in str(w.message)]
    assert len(loud) == (MODULES[name][1] != ["generated"])
    assert data.source_used == "generated"
    other = make(name, cache_dir=tmp_path, generated_size=(30, 9, 9))
    other.setup()  # as another process does
    assert other.source_used == "generated"
    assert other.fingerprint == data.fingerprint
    assert other.task == data.task


@pytest.mark.parametrize("name", MODULES)
def test_a_folder_that_does_not_exist_is_one_sentence(name, tmp_path):
    if MODULES[name][1] == ["generated"]:
        with pytest.raises(DataError, match=r"data\.data_dir is .*: set it to null"):
            make(name, data_dir=tmp_path)
        return
    data = make(name, data_dir=tmp_path / "nowhere", cache_dir=tmp_path)
    with pytest.raises(DataError, match="does not exist: correct the path"):
        data.prepare_data()


@pytest.mark.parametrize("name", MODULES)
def test_numbers_to_generate_are_three_where_there_is_a_generator(name):
    sentence = "three positive numbers" if name in GENERATED else "never generated"
    with pytest.raises(DataError, match=sentence):
        make(name, generated_size=(1, 2))


@pytest.mark.parametrize("name", MODULES)
def test_setup_without_preparation_is_one_sentence(name, tmp_path):
    with pytest.raises(DataError, match=r"No prepared data for .*: call prepare_data\(\) first"):
        make(name, cache_dir=tmp_path).setup()

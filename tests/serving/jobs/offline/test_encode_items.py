"""An index whose items were encoded on Ray is the one that is made here."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from features.errors import DataError
from serving.config import ServingConfig
from serving.jobs.build_index import build_index
from serving.jobs.offline.encode_items import EncodeWork, RayItemEncoder
from serving.jobs.offline.ray_engine import RayEngine
from serving.snapshot.snapshot import Snapshot
from tests import running
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_file import BundleError
from towers.cli.main import main


@pytest.fixture
def bundle(two_models, tmp_path) -> ModelBundle:
    """A bundle of its own, with an index that this process made."""
    shutil.copytree(two_models / "one", tmp_path / "one")
    return ModelBundle.open(tmp_path / "one")


def test_the_vectors_and_what_is_made_of_them_are_the_same(ray, bundle, monkeypatch, capfd):
    monkeypatch.setattr("serving.jobs.offline.encode_items.ITEMS_AT_ONCE", 7)
    here = Snapshot.open(bundle)
    expected = np.array(here.index.vectors)
    build_index(bundle, {}, encode=RayItemEncoder(ServingConfig(), RayEngine(num_actors=2)))
    found = Snapshot.open(bundle)
    np.testing.assert_allclose(found.index.vectors, expected, atol=1e-6)
    np.testing.assert_allclose(found.user_vectors, here.user_vectors, atol=1e-6)
    assert found.manifest.catalog_digest == here.manifest.catalog_digest
    assert len(expected) > 3 * 7
    assert f"{len(expected)} items" in capfd.readouterr().out


def test_a_machine_with_another_bundle_is_named(ray, two_models):
    work = EncodeWork(two_models / "one", "another", ServingConfig(), "cpu")
    with pytest.raises(
        BundleError, match=r"found model \w+, expected model another; all machines need the same folder"
    ):
        list(RayEngine(num_actors=1).run(work, [None]))


def test_there_are_no_more_actors_than_gpus_for_them():
    """Another actor would wait for a GPU, and its tasks with it, without end."""
    four_cores = {"CPU": 4.0, "GPU": 2.0}
    assert [RayEngine(None, wanted, 1).possible_actors(four_cores) for wanted in (None, 1, 8)] == [2, 1, 2]
    assert RayEngine(None, None, 0).possible_actors({"CPU": 4.0}) == 4
    with pytest.raises(DataError, match="Ray finds no GPU"):
        RayEngine(None, None, 1).possible_actors({"CPU": 4.0})


def test_the_index_before_stays_if_no_cluster_answers(bundle):
    pytest.importorskip("ray", reason="ray is not installed")
    before = Snapshot.open(bundle).manifest.identity
    # In a process of its own: this one is connected to the Ray of other tests.
    ended = running.towers(bundle.path, "index", ".", "--engine", "ray", "--address", "127.0.0.1:1")
    assert ended.returncode == 2, ended.stderr
    assert "no Ray cluster can be used there" in ended.stderr
    assert Snapshot.open(bundle).manifest.identity == before


def test_an_address_without_ray_is_a_mistake(bundle, capsys):
    assert main(["index", str(bundle.path), "--address", "127.0.0.1:1"]) == 2
    assert "--address and --actors need --engine ray" in capsys.readouterr().err

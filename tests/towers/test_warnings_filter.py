from __future__ import annotations

import subprocess
import sys

import pytest


def stderr_of(program: str) -> str:
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return ended.stdout + ended.stderr


def test_the_heavy_libraries_are_imported_and_used_without_a_word() -> None:
    program = """
from towers.warnings_filter import quiet_imports
quiet_imports()
import logging, torch, torchrec, faiss, mlflow
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
table = torchrec.EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=9, feature_names=["f"])
bags = FusedEmbeddingBagCollection(
    tables=[table], optimizer_type=torch.optim.Adagrad, optimizer_kwargs={"lr": 0.1}, device=torch.device("cpu")
)
features = torchrec.KeyedJaggedTensor.from_lengths_sync(
    keys=["f"], values=torch.tensor([1, 2]), lengths=torch.tensor([2])
)
bags(features)["f"].sum().backward()
torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (1, 1))
logging.getLogger("anybody").debug("debugging of another library")
"""
    assert stderr_of(program) == ""


def test_real_warnings_pass() -> None:
    said = stderr_of(
        "from towers.warnings_filter import quiet_imports; quiet_imports(); quiet_imports()\n"
        "import logging, warnings\n"
        "warnings.warn('a warning')\n"
        "for name in ('ours', 'torch.fx._symbolic_trace', 'torchrec.distributed.planner', 'mlflow.store.db.utils'):\n"
        "    logging.getLogger(name).warning('%s warns', name)\n"
    )
    assert "UserWarning: a warning" in said
    for name in ("ours", "torch.fx._symbolic_trace", "torchrec.distributed.planner", "mlflow.store.db.utils"):
        assert said.count(f"{name} warns") == 1


@pytest.mark.parametrize(
    ("name", "is_off"),
    [
        (
            "MLFLOW_DISABLE_TELEMETRY",
            "from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY as off; print(off.get(), end='')",
        ),
        (
            "HF_HUB_DISABLE_TELEMETRY",
            "from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY as off; print(off, end='')",
        ),
    ],
)
def test_libraries_send_no_statistics_unless_wanted(name: str, is_off: str) -> None:
    """Each library itself says whether it is allowed to."""
    pytest.importorskip("huggingface_hub")
    prepare = "from towers.warnings_filter import quiet_imports; quiet_imports()"
    assert stderr_of(f"import os; os.environ.pop({name!r}, 0)\n{prepare}\n{is_off}") == "True"
    assert stderr_of(f"import os; os.environ[{name!r}] = 'false'\n{prepare}\n{is_off}") == "False"


def test_statistics_are_off_before_mlflow_is_imported() -> None:
    program = """
import os
for name in ("MLFLOW_DISABLE_TELEMETRY", "CI", "PYTEST_CURRENT_TEST"):
    os.environ.pop(name, None)
import towers
towers.DataError
import mlflow
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client(), end="")
"""
    assert stderr_of(program) == "None"

from __future__ import annotations

import subprocess
import sys


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


def test_mlflow_sends_no_statistics_unless_wanted() -> None:
    show = (
        "from towers.warnings_filter import quiet_imports; quiet_imports(); "
        "import os; print(os.environ[{name!r}], end='')"
    )
    name = "MLFLOW_DISABLE_TELEMETRY"
    assert stderr_of(f"import os; os.environ.pop({name!r}, 0); {show.format(name=name)}") == "true"
    assert stderr_of(f"import os; os.environ[{name!r}] = 'false'; {show.format(name=name)}") == "false"

"""The code of a bundle that is logged in MLflow: `mlflow.pyfunc.load_model("models:/two-towers@champion")`.

MLflow copies this file next to the bundle and runs it when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

COLUMNS = ["request", "item_id", "score", "rank"]


class BundleModel(PythonModel):
    """Recommendations of a bundle, as `towers.Model` gives them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle; an index is built from the tables of its training if it has none."""
        import towers

        self.model = towers.open(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the recommendations for each row of a table.

        Args:
            context: Not used: the bundle is open.
            model_input: In each row a `user_id`, or a `history` (ids of items, oldest first), or, for a search, a
                `query`.
            params: `k` items for each row (10).

        Returns:
            `request` (the place of the row in the input, from 0), `item_id`, `score` and `rank` (from 1).

        Raises:
            DataError: A row has none of these.
        """
        k = int((params or {}).get("k", 10))
        answers = [answer.assign(request=request)[COLUMNS] for request, answer in self._answers(model_input, k)]
        return pd.concat(answers, ignore_index=True) if answers else pd.DataFrame(columns=COLUMNS)

    def _answers(self, asked: pd.DataFrame, k: int) -> Iterator[tuple[int, pd.DataFrame]]:
        import towers

        for request, row in enumerate(asked.to_dict("records")):
            if isinstance(row.get("query"), str):
                yield request, self.model.search(row["query"], k)
            elif row.get("history") is not None and not isinstance(row["history"], float):
                yield request, self.model.recommend(history=list(row["history"]), k=k)
            elif not pd.isna(row.get("user_id")):
                yield request, self.model.recommend(row["user_id"], k)
            else:
                raise towers.DataError(f"row {request}: expected a user_id, a history or a query, found none")


mlflow.models.set_model(BundleModel())

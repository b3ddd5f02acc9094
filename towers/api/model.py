"""`Model`: a bundle, and what can be asked of it in Python; every answer is that of a command or of the service."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from features.errors import DataError
from features.files import atomic_folder
from serving.config import ServingConfig, settings_here
from serving.deploy.mlflow_registry import Alias, fetched
from serving.http.contract.requests import Contract
from serving.jobs.build_index import build_index
from serving.jobs.drift import DriftReport, find_drift
from serving.jobs.findings import Limits
from serving.jobs.open import open_recommender
from serving.jobs.recommend_all import Audience
from serving.jobs.request_drift import RequestSource
from serving.recommend.recommender import Recommender
from serving.recommend.reranking import RerankStage
from serving.search.index_config import INDEX_KINDS, IndexKind
from serving.search.searcher import Searcher
from serving.search.tuning import COLUMNS, Tuning
from serving.snapshot.manifest import FOLDER
from towers.api import requests
from towers.api.answers import Answers
from towers.api.errors import plain_errors
from towers.api.printing import printing
from towers.api.requests import Filter, Ids
from towers.api.results import Recommendations
from towers.api.service import Service, served
from towers.api.tables import CONTINUATION_TABLES, Table, as_files, as_overrides, by_full_name, plain, stored
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_folder import read_manifest
from towers.process import keeping_memory
from towers.rerankers.reranker import Reranker
from training.evaluation.report import PRIMARY_METRIC, EvaluationReport, label_of
from training.runs.run_folder import check_replaceable

UserIds: TypeAlias = int | str | Ids
"""The id of a user, or several."""
EvaluationProtocol: TypeAlias = Literal[
    "leave-one-out", "leave-one-basket-out", "time", "users", "queries", "cold-items"
]
"""How test data is held out."""
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
"""Device to train on; `auto` is a GPU if there is one."""
Split: TypeAlias = Literal["test", "validation"]
"""Held-out data to evaluate on."""
Tables: TypeAlias = Mapping[str, Table]
"""Tables by name."""

_UNKNOWN_WORDS = ("the model knows none of the words: popular items",)


@plain_errors
def open_model(
    bundle: str | os.PathLike[str] | ModelBundle, *, config: str | os.PathLike[str] | None = None, **settings: Any
) -> Model:
    """Open a bundle.

    Args:
        bundle: The folder of a bundle, such as `"runs/run-1"`; a link to one, such as `"runs/latest"`, which is
            followed now and not later; an alias of MLflow's registry, such as `"models:/two-towers@champion"`; or a
            bundle that is open.
        config: A `serving.toml`. None: that of the working folder, if there is one, as for the commands.
        **settings: Settings of serving.toml by name, such as `recommend_seen=True` or `rerank=False`.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        DataError: A setting is wrong, or the registry does not respond.

    Example:
        >>> towers.open(model.path).version == model.version
        True
        >>> towers.open("runs/mistaken")
        Traceback (most recent call last):
        ...
        towers.bundle.sealed_file.BundleError: runs/mistaken: no such bundle; `towers train run.toml` writes one
    """
    chosen = settings_here(None if config is None else Path(config), settings)
    if isinstance(bundle, ModelBundle):
        return Model(bundle, chosen)
    alias = Alias.parse(str(bundle))
    path = Path(bundle) if alias is None else fetched(alias, chosen)
    if path.is_symlink():
        path = path.parent / path.readlink()
    return Model(ModelBundle.open(path, trust=chosen.trust), chosen)


class Model:
    """A trained model: a bundle, and what can be asked of it.

    `towers.train` and `towers.open` return one. Its index is built from the tables of the training at the first
    question, if there is none yet, as `towers serve` does; `towers index` builds it from newer tables.

    Args:
        bundle: The bundle.
        settings: The settings of a service.

    Attributes:
        bundle: The bundle.
        settings: The settings of a service, of which those count that say what is recommended.

    Example:
        >>> model
        <Model runs/run-1: ...
        >>> model.recommend([10002, 10003], k=2)[["user_id", "rank"]].values.tolist()
        [[10002, 1], [10002, 2], [10003, 1], [10003, 2]]
    """

    def __init__(self, bundle: ModelBundle, settings: ServingConfig | None = None) -> None:
        self.bundle = bundle
        self.settings = settings or ServingConfig()
        self._parts: tuple[RerankStage | None, Callable[[np.ndarray], Searcher] | None] = (None, None)

    @property
    def path(self) -> Path:
        """The folder of the bundle."""
        return self.bundle.path

    @property
    def version(self) -> str:
        """The version of the model, which responses of the service name as `model`."""
        return self.bundle.version

    @property
    def report(self) -> EvaluationReport | None:
        """The comparison with baselines that training made, on validation data; None if nothing was trained."""
        return EvaluationReport.from_dict(self.bundle.report) if self.bundle.report else None

    @cached_property
    def recommender(self) -> Recommender:
        """The recommender over the bundle and its index, for what this class does not offer."""
        recommender = open_recommender(self.bundle, self.settings)
        rerank, make_searcher = self._parts
        searcher = None if make_searcher is None else make_searcher(recommender.snapshot.index.vectors[:])
        return recommender.with_parts(rerank, searcher)

    @plain_errors
    def recommend(
        self,
        users: UserIds | None = None,
        k: int = 10,
        *,
        history: Ids | None = None,
        attributes: Mapping[str, Any] | None = None,
        times: Sequence[int] | np.ndarray | pd.Series | None = None,
        offset: int = 0,
        filter: Filter | None = None,  # noqa: A002 (its name over HTTP)
        exclude: Ids | None = None,
        pin: Ids | None = None,
        boost: Sequence[Mapping[str, Any]] | None = None,
        demote: Sequence[Filter] | None = None,
        at_most: Mapping[str, int] | None = None,
        diversity: float | None = None,
        distinct: float | None = None,
        reasons: int = 0,
    ) -> Recommendations:
        """Return recommendations for users by id, for a described user, or for all users.

        The rows are those that `towers recommend` writes and the service returns, but re-ranking has no time budget.
        Parameters have the names and the meaning that they have over HTTP.

        Args:
            users: An id, or several; repeats are left out. None: the described user, or without one all users.
            k: Number of items per user.
            history: Ids of the items of a described user, oldest first.
            attributes: Attributes of a described user, by column of the users' table.
            times: Times of the history, in Unix seconds.
            offset: Number of best items to skip.
            filter: Conditions on the items, such as `{"brand": "Acme", "price": {"max": 50}}`.
            exclude: Ids of items to leave out.
            pin: Ids of items to put first.
            boost: Amounts added to scores: `[{"filter": {"brand": "Acme"}, "by": 0.1}]`.
            demote: Filters; items that match one come last.
            at_most: Maximum number of items with the same value of a column: `{"brand": 2}`.
            diversity: Weight of diversity against relevance, 0 to 1.
            distinct: Of items at least this similar only the first is returned.
            reasons: Maximum number of history items returned as reasons, in a column `because`.

        Returns:
            Columns `user_id`, `item_id`, `score`, `rank` and, where the catalogue has titles, `title`. `notes` names
            users without history and attributes, who get popular items. A notebook shows titles, pictures where a
            column of the catalogue has their addresses, and the history with the recommendations.

        Raises:
            DataError: An id is missing or has another type than in the tables, or a parameter is wrong.

        Example:
            >>> frame = model.recommend(10002, k=2)
            >>> frame.columns.tolist()
            ['user_id', 'item_id', 'score', 'rank', 'title']
            >>> described = model.recommend(history=frame["item_id"], attributes={"country": "DE"}, k=1)
            >>> described["rank"].tolist(), described.notes
            ([1], ())
        """
        given: dict[str, Any] = {
            "k": k,
            "offset": offset,
            "filter": filter,
            "exclude": exclude,
            "pin": pin,
            "boost": boost,
            "demote": demote,
            "at_most": at_most,
            "diversity": diversity,
            "distinct": distinct,
            "reasons": reasons,
        }
        described = {"history": history, "attributes": attributes, "times": times}
        filters = self.recommender.state.filters
        if any(value is not None for value in described.values()):
            if users is not None:
                raise DataError("users: not together with history, attributes or times, which describe another user")
            profile, request = requests.for_profile(self._contract, filters, {**given, **described})
            return self._answers.for_profile(profile, request)
        request = requests.for_users(self._contract, filters, given)
        audience = Audience.everyone(self.recommender) if users is None else self._audience(users)
        return self._answers.for_audience(audience, request)

    @plain_errors
    def similar(
        self,
        item_id: int | str,
        k: int = 10,
        *,
        offset: int = 0,
        filter: Filter | None = None,  # noqa: A002
        exclude: Ids | None = None,
        diversity: float | None = None,
        distinct: float | None = None,
    ) -> Recommendations:
        """Return the items most similar to an item: columns `item_id`, `score`, `rank` and perhaps `title`.

        Args:
            item_id: The item.
            k: Number of items.
            offset: Number of best items to skip.
            filter: Conditions on the items.
            exclude: Ids of items to leave out.
            diversity: Weight of diversity against relevance, 0 to 1.
            distinct: Of items at least this similar only the first is returned.

        Raises:
            DataError: There is no such item, or a parameter is wrong.

        Example:
            >>> best = model.recommend(10002, k=1)["item_id"].item()
            >>> model.similar(best, k=3)["rank"].tolist()
            [1, 2, 3]
        """
        given: dict[str, Any] = {
            "k": k,
            "offset": offset,
            "filter": filter,
            "exclude": exclude,
            "diversity": diversity,
            "distinct": distinct,
        }
        request = requests.for_item(self._contract, self.recommender.state.filters, given)
        response = self.recommender.similar(plain(item_id), request)
        if response is None:
            raise DataError(f"item_id: no item {plain(item_id)!r} in the catalogue; give an id as in the items' table")
        return self._answers.listed(response.items, f"similar to {self._answers.title(plain(item_id))}")

    @plain_errors
    def search(
        self,
        text: str,
        k: int = 10,
        *,
        offset: int = 0,
        filter: Filter | None = None,  # noqa: A002
        exclude: Ids | None = None,
        diversity: float | None = None,
        distinct: float | None = None,
    ) -> Recommendations:
        """Return the items most relevant to a text: columns `item_id`, `score`, `rank` and perhaps `title`.

        Args:
            text: The text.
            k: Number of items.
            offset: Number of best items to skip.
            filter: Conditions on the items.
            exclude: Ids of items to leave out.
            diversity: Weight of diversity against relevance, 0 to 1.
            distinct: Of items at least this similar only the first is returned.

        Raises:
            DataError: The model has no text features, or a parameter is wrong.

        Example:
            >>> len(model.search("wooden table", k=3))
            3
        """
        given: dict[str, Any] = {
            "q": text,
            "k": k,
            "offset": offset,
            "filter": filter,
            "exclude": exclude,
            "diversity": diversity,
            "distinct": distinct,
        }
        query, request = requests.for_text(self._contract, self.recommender.state.filters, given)
        response = self.recommender.search(query, request)
        return self._answers.listed(response.items, query, _UNKNOWN_WORDS if response.fallback else ())

    @plain_errors
    def history(self, user_id: int | str, k: int = 10) -> Recommendations:
        """Return the newest items of a user's history, newest first: columns `item_id`, `rank` and perhaps `title`.

        Args:
            user_id: The user.
            k: Maximum number of items.

        Raises:
            DataError: There is no such user.
        """
        items = self.recommender.history(plain(user_id), k)
        if items is None:
            raise DataError(f"user_id: no user {plain(user_id)!r}; give an id as in the interactions")
        return self._answers.listed(items, f"history of user {user_id}, newest first", is_history=True)

    @plain_errors
    def evaluate(
        self,
        protocol: EvaluationProtocol | None = None,
        *,
        split: Split = "test",
        seeds: int = 1,
        compare: Tables | None = None,
        upper_bound: Tables | None = None,
        output: str | os.PathLike[str] | None = None,
        device: Device = "auto",
        baselines: bool = True,
        baseline_minutes: float = 15,
        progress: bool = True,
    ) -> EvaluationReport:
        """Train with the settings of this model on part of its tables, and compare with baselines on the rest.

        The same as `towers evaluate` with its run.toml, to the last digit. `report` is the comparison that was made
        while this model was trained, on validation data.

        Args:
            protocol: How test data is held out. None: leave-one-out with an order, else users; queries for a search.
            split: Held-out data to evaluate on; compare settings on `validation`, and use `test` once, at the end.
            seeds: Number of trainings.
            compare: Other recommendations to evaluate, by name: tables of `user_id`, `item_id` and `score` or `rank`.
            upper_bound: The same, for recommendations shown as an upper bound.
            output: Folder for the report and the ranks that `towers.audit` and `towers.compare` read.
            device: Device to train on.
            baselines: Whether to compare with baselines.
            baseline_minutes: Time for choosing the hyperparameters of the baselines. 0: each is fitted once.
            progress: Whether to print what the command prints on the way.

        Returns:
            The report, which prints as a table and has `to_frame()`.

        Raises:
            DataError: The tables cannot be read any more, or an argument is wrong.
        """
        from training.config import read_run_config
        from training.tasks.evaluate import evaluate_settings

        with keeping_memory(), printing(progress), ExitStack() as files:
            others, bounds = (
                list(files.enter_context(as_files(tables or {})).items()) for tables in (compare, upper_bound)
            )
            return evaluate_settings(
                read_run_config(self.bundle.folder.file("run.toml")),
                self.bundle.tables_folder,
                protocol,
                seeds=seeds,
                device=device,
                part=split,
                compare=others,
                upper_bound=bounds,
                output=None if output is None else Path(output),
                baselines=baselines,
                baseline_minutes=baseline_minutes,
            )

    @plain_errors
    def update(
        self,
        interactions: Table | None = None,
        *,
        items: Table | None = None,
        users: Table | None = None,
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
        device: Device = "auto",
        progress: bool = True,
        **values: Any,
    ) -> Model:
        """Continue the training with new interactions, as `towers train --continue` does, and return the new model.

        This model and its bundle stay as they are. The new interactions are trained on with a sample of the old ones,
        for a few epochs: new users, items and categories join, and known ones are not forgotten.

        Args:
            interactions: New interactions, with the columns of those of the training; those that were there already are
                merged. None: the table of the training, as it is now.
            items: The whole catalogue as it is now. None: the table of the training, as it is now.
            users: Attributes of all users as they are now, likewise.
            output: Folder of the new bundle. None: the next free `runs/run-N`.
            resume: Whether to continue the newest unfinished call of this kind.
            device: Device to train on.
            progress: Whether to print what the command prints.
            **values: Settings by their own names, such as `epochs=3`: those of `[continuation]`, and of
                `[training]` where `[continuation]` has none of that name.

        Raises:
            DataError: The tables are wrong, a setting would change what the weights mean, or this model keeps nothing
                to continue from.
        """
        from training.tasks.continue_training import continue_and_bundle

        overrides = as_overrides(by_full_name(values, CONTINUATION_TABLES))
        with stored({"interactions": interactions, "items": items, "users": users}) as inputs, printing(progress):
            if inputs.names:
                inputs.keep()
            with keeping_memory():
                path = continue_and_bundle(
                    self.bundle.path,
                    overrides,
                    tables=inputs.paths,
                    output=None if output is None else Path(output),
                    resume=resume,
                    device=device,
                )
        return Model(ModelBundle.open(path, trust=self.settings.trust), self.settings)

    @plain_errors
    def index(
        self,
        *,
        interactions: Table | None = None,
        items: Table | None = None,
        users: Table | None = None,
        kind: IndexKind | None = None,
        recall: float | None = None,
        precompute: int | None = None,
        half_precision: bool = False,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Build the index again, from today's tables or of another kind, as `towers index` does.

        Args:
            interactions: Today's interactions. None: the table that training read, as it is now.
            items: Today's catalogue, likewise.
            users: Today's attributes of users, likewise.
            kind: The index kind. None: `exact`, or with `recall` the fastest.
            recall: Target recall@100, above 0 to 1: each kind, or that of `kind`, is tuned on queries of users, and the
                fastest that reaches it is kept. None: nothing is tuned.
            precompute: Number of recommendations per user to precompute. None: 100, if that is done quickly.
            half_precision: Whether item vectors are kept in float16: half the disk and memory.
            progress: Whether to print what the command prints.

        Returns:
            What was measured of each index that was tried, the chosen one first: `kind`, `index` (with its parameters),
            `recall_at_100`, `searches_per_second` (one at a time, in one thread), `megabytes` (without the vectors) and
            `build_seconds`. No rows without `recall`.

        Raises:
            DataError: A table cannot be read or lacks a column that the model reads, or an argument is wrong.

        Example:
            >>> model.index(progress=False).empty
            True
        """
        if kind is not None and kind not in INDEX_KINDS:
            raise DataError(f"kind: expected one of {', '.join(INDEX_KINDS)}, found {kind!r}")
        if recall is not None and not 0 < recall <= 1:
            raise DataError(f"recall: expected a share above 0, at most 1, found {recall!r}")
        tuned: list[Tuning] = []
        with printing(progress), as_files({"interactions": interactions, "items": items, "users": users}) as tables:
            build_index(
                self.bundle,
                tables,
                kind,
                recall,
                precomputed=precompute,
                half_precision=half_precision,
                database=self.settings.database,
                filter_columns=self.settings.filter_columns,
                tuned=tuned.append,
            )
        for built_before in ("recommender", "_answers"):
            self.__dict__.pop(built_before, None)
        return tuned[0].to_frame() if tuned else pd.DataFrame(columns=COLUMNS)

    @plain_errors
    def drift(
        self,
        *,
        interactions: Table | None = None,
        items: Table | None = None,
        users: Table | None = None,
        psi: float = 0.2,
        fall: float = 0.1,
        index_hours: float = 48,
        requests: str | os.PathLike[str] | None = None,
        recent: float = 24,
        window: float = 24,
        latency: float = 1000,
    ) -> DriftReport:
        """Compare today's tables with those of the training, as `towers drift` does.

        Args:
            interactions: Today's interactions. None: the table that training read, as it is now.
            items: Today's catalogue, likewise.
            users: Today's attributes of users, likewise.
            psi: Limit of the population stability index of a column, above 0.
            fall: Limit of the fall of a share of filled cells or known values, 0 to 1.
            index_hours: Limit of the age of the index in hours, above 0.
            requests: The request log of the service. None: that of the setting `request_log`, if there is one.
            recent: How many hours of its end are compared with what is before them, above 0.
            window: For how many hours after an answer an event of a returned item counts as a click, above 0.
            latency: Limit in milliseconds that 99 % of the logged requests must not exceed, above 0.

        Returns:
            The report, which prints its verdict and has `drifted`, `to_frame()` and `write(folder)`.

        Raises:
            DataError: A table cannot be read or lacks a column that the model reads, or a limit is wrong.

        Example:
            >>> model.drift().drifted
            ()
        """
        limits = Limits(psi, fall, index_hours, latency)
        source = RequestSource.of(self.settings, None if requests is None else Path(requests), recent, window)
        with as_files({"interactions": interactions, "items": items, "users": users}) as tables:
            return find_drift(self.bundle, tables, limits, source)

    @plain_errors
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copy the bundle, with its index and its ranker if it has them, to a folder.

        Args:
            folder: The folder; a bundle that is there is replaced.

        Raises:
            DataError: There is something else, or a bundle that may be served.
        """
        target = Path(folder)
        if target.resolve() == self.path.resolve():
            return
        check_replaceable(target)
        with atomic_folder(target) as copied:
            shutil.copytree(self.path, copied, dirs_exist_ok=True)

    @plain_errors
    def serve(self, port: int = 8000, **settings: Any) -> None:
        """Serve this model over HTTP until Ctrl-C, as `towers serve` does.

        Args:
            port: Port to listen on; 0 for any free one.
            **settings: Settings of serving.toml by name, such as `workers=2`.

        Raises:
            DataError: A setting is wrong, or the port is in use.
        """
        with self.serving(port, **settings) as service:
            try:
                service.wait()
            except KeyboardInterrupt:
                print("stopped", flush=True)

    def serving(self, port: int = 0, **settings: Any) -> AbstractContextManager[Service]:
        """Serve this model while a block runs: `with model.serving() as service:` has `service.address`.

        Args:
            port: Port to listen on; 0 for any free one.
            **settings: As for `serve`.
        """
        return self._served({"port": port, **settings})

    @contextmanager
    def _served(self, settings: Mapping[str, Any]) -> Iterator[Service]:
        if self._parts != (None, None):
            raise DataError("a re-ranker or a searcher that was passed from Python cannot be served over HTTP")
        chosen = settings_here(flags={**self.settings.model_dump(exclude_unset=True), **settings})
        with served(self.path, chosen) as service:
            yield service

    def with_reranker(self, reranker: Reranker, candidates: int = 200, *, searches: bool = False) -> Model:
        """Return this model with a re-ranker of your own in the place of that of the bundle.

        Args:
            reranker: An object with the method `scores` of `towers.Reranker`.
            candidates: Number of retrieved items that it orders.
            searches: Whether it orders the results of `search` as well.
        """
        return self._with(RerankStage(reranker, candidates, None, searches), self._parts[1])

    def with_searcher(self, make: Callable[[np.ndarray], Searcher]) -> Model:
        """Return this model with a searcher of your own in the place of the index.

        Args:
            make: Returns a `towers.Searcher` for the items' unit vectors, `[items, dim]`, by row of the catalogue.
        """
        return self._with(self._parts[0], make)

    def _with(self, rerank: RerankStage | None, make: Callable[[np.ndarray], Searcher] | None) -> Model:
        other = Model(self.bundle, self.settings)
        other._parts = (rerank, make)
        return other

    @cached_property
    def _contract(self) -> Contract:
        return requests.contract_of(self.settings)

    def _audience(self, users: UserIds) -> Audience:
        ids = plain(users)
        return Audience.of(pd.Series(ids if isinstance(ids, list) else [ids], dtype=object), self.recommender, "users")

    @cached_property
    def _answers(self) -> Answers:
        return Answers(self.recommender)

    def __repr__(self) -> str:
        """Return what the model is: items, users, dimension, version, quality."""
        return f"<Model {self.path}: {', '.join(f'{name} {value}' for name, value in self._facts().items())}>"

    def _repr_html_(self) -> str:
        """Return the same as a table for a notebook."""
        left = 'style="text-align: left"'
        rows = "".join(
            f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>"
            for name, value in self._facts().items()
        )
        return f"<p><b>Model {escape(str(self.path))}</b></p><table>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        """Return what the model is, as texts by name."""
        counts = {name: f"{count:,}" for name, count in self._counts().items()}
        facts = {**counts, "dimensions": str(self.bundle.config.towers.embedding_dim), "version": self.version}
        report = self.report
        if report is not None:
            ours, *others = ((row.metrics[PRIMARY_METRIC].mean, row.name) for row in report.rows)
            than = " (best baseline: {1}, {0:.4f})".format(*max(others)) if others else ""
            facts[f"{report.part} {label_of(PRIMARY_METRIC)}"] = f"{ours[0]:.4f}{than}"
        return facts

    def _counts(self) -> dict[str, int]:
        """Return the number of items and users of the index, or of items in training if there is no index yet."""
        if "recommender" in self.__dict__:
            manifest = self.recommender.snapshot.manifest
            return {"items": manifest.num_items, "users": manifest.num_users}
        try:
            content = read_manifest(self.path / FOLDER)
            return {"items": int(content["num_items"]), "users": int(content["num_users"])}
        except (OSError, ValueError, KeyError, TypeError):
            report = self.report
            return {} if report is None else {"items": report.num_candidates}

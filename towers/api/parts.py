"""What parts of your own are made of: the tables that they are added to, and the types of their arguments."""

from __future__ import annotations

from serving.search.results import AllowedItems as AllowedItems
from serving.search.results import Hits as Hits
from serving.search.searcher import Searcher as Searcher
from training.evaluation.report import EvaluationReport as EvaluationReport
from training.loop.losses import LOSSES as LOSSES
from training.loop.losses import Loss as Loss

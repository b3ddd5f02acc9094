"""Public types of other packages: results, what parts of your own are added to, and the types of their arguments."""

from __future__ import annotations

from serving.jobs.drift import DriftReport as DriftReport
from serving.search.results import AllowedItems as AllowedItems
from serving.search.results import Hits as Hits
from serving.search.searcher import Searcher as Searcher
from training.audit.comparison_report import ComparisonReport as ComparisonReport
from training.audit.report import AuditReport as AuditReport
from training.evaluation.report import EvaluationReport as EvaluationReport
from training.loop.losses import LOSSES as LOSSES
from training.loop.losses import Loss as Loss

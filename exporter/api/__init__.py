"""The HTTP contract: types, paths and problems, and the OpenAPI description built from them. No I/O."""

from __future__ import annotations

from exporter.api import openapi, verbs
from exporter.api.problems import PATH, PROBLEMS
from exporter.api.routes import ADMIN, ROOT, ROUTES, Route
from exporter.api.types import (
    Device,
    Done,
    Job,
    JobList,
    Layer,
    Outcome,
    Problem,
    Vm,
    VmList,
    VmSummary,
)
from exporter.api.verbs import (
    JOB_ID_PREFIX,
    JOB_REQUESTS,
    VERBS,
    Commit,
    JobId,
    JobRequest,
    Request,
    Snapshot,
    Speed,
    UnseenNeighbours,
    Verb,
)

__all__ = [
    "ADMIN",
    "JOB_ID_PREFIX",
    "JOB_REQUESTS",
    "PATH",
    "PROBLEMS",
    "ROOT",
    "ROUTES",
    "VERBS",
    "Commit",
    "Device",
    "Done",
    "Job",
    "JobId",
    "JobList",
    "JobRequest",
    "Layer",
    "Outcome",
    "Problem",
    "Request",
    "Route",
    "Snapshot",
    "Speed",
    "UnseenNeighbours",
    "Verb",
    "Vm",
    "VmList",
    "VmSummary",
    "openapi",
    "verbs",
]

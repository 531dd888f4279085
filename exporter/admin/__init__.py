"""The only place that may change a VM: requests, preconditions, records."""

from __future__ import annotations

from exporter.admin import audit, present, service
from exporter.admin.audit import Audit
from exporter.admin.job_records import JobRecords
from exporter.admin.requests import AdminRequests

__all__ = ["AdminRequests", "Audit", "JobRecords", "audit", "present", "service"]

"""What people see: tables, lists, errors, progress. Derived from runs and errors; nothing here computes a number."""

from antlm_bench.reporting.terminal import catalog, facts, problem, show_runs

__all__ = ["catalog", "facts", "problem", "show_runs"]

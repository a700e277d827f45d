"""What people see: tables, lists, errors, progress. Derived from runs and errors; nothing here
computes a number.
"""

from antlm_bench.reporting.terminal import print_error, print_fields, print_rows, show_runs

__all__ = ["print_error", "print_fields", "print_rows", "show_runs"]

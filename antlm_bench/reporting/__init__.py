"""What people see: tables in every format, figures, pages, progress. Nothing here computes a
number.
"""

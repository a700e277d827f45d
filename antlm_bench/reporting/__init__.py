"""Output: tables in every format, figures and HTML pages. This package computes no statistics."""

"""Scoring: texts -> probes -> a plan without repetition -> log-probabilities."""

"""Finetuning: texts with classes in, one loop around a checkpoint's body, a Prediction per text
out.
"""

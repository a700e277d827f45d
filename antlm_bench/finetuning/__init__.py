"""Finetune a checkpoint on classification tasks, or fit a classifier on its frozen features."""

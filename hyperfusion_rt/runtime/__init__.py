"""Inference: the artifact, the engines, the streaming pipeline, the report. No torch."""

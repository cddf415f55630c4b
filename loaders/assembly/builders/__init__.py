"""Builders: one batch, made part by part by the threads that decode its images."""

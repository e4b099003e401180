"""Layers of the networks around the losses."""

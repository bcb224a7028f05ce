"""Simulation of the control plane in virtual time."""

"""Launchers: one port, with an adapter for Ray jobs, one for KubeRay, and one for the driver of attempts."""

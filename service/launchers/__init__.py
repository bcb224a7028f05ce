"""Launchers: one port, with an adapter for Ray jobs and one for KubeRay."""

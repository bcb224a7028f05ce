"""Bounded child processes, in which the bytes of users are parsed. Shared by preparation and the endpoint."""

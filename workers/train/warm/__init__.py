"""A group of ranks that stays: it learns one dataset after another, so that none waits for imports.

desk.py        who is next, and what became of it: plain Python, tested without Ray
resident.py    the Ray actor that has the desk, and keeps one Ray Train run going
deaths.py      which ends of a group count against an attempt
ranks.py       what each rank of that run does
client.py      what the job of an attempt does: it asks, waits, and passes the outcome on
wire.py        how these two speak
start.py       how a job finds or starts the resident
arguments.py   how large a group is to be, on the command line
"""

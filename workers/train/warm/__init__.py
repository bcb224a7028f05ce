"""A group of ranks that stays: it learns one dataset after another, so that none waits for imports.

desk.py        who is next, and what became of it: plain Python, tested without Ray
reception.py   where jobs come to the desk, at a socket or by calls
resident.py    the Ray actor that has the reception, and keeps one Ray Train run going
deaths.py      which ends of a group count against an attempt
ranks.py       what each rank of that run does
client.py      what the job of an attempt does: it asks, waits, and passes the outcome on
connection.py  how it reaches the resident on its own node
telling.py     what it tells while it has no ranks
start.py       how it finds or starts the resident, and reaches one on another node
wire.py        what they say
arguments.py   how large a group is to be, on the command line
"""

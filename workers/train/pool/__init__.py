"""A pool of ranks that outlives single attempts, so that an attempt does not wait for imports.

queue.py      which attempt is next, and what became of it: plain Python, tested without Ray
server.py     how jobs join the queue, through a socket or by calls; one event loop, no Ray
actor.py      the Ray actor that runs the server and one Ray Train run after another
ranks.py      that Ray Train run, and what each of its ranks does
client.py     what the job of an attempt does: join, wait, report the outcome
protocol.py   the messages between job and actor, and the command line options of a pool
"""

"""Preemption notices. In separate processes, as a notice stays set."""

import subprocess
import sys

LISTEN = """
from workers.train.checkpoint import watch_for_preemption, preemption_noticed

questions = []

def ask():
    questions.append(preemption_noticed())
    {answer}

assert not preemption_noticed()
watch_for_preemption(ask, seconds=0.001).join()
print(len(questions), any(questions), preemption_noticed())
"""


def listen(answer: str) -> list[str]:
    """The lines that a process prints whose question is answered by this."""
    program = LISTEN.format(answer=answer)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_the_notice_is_shown_once_the_service_responds() -> None:
    notice, counts = listen("return 'node-7' if len(questions) == 3 else None")
    assert notice == "preemption notice: node-7"
    assert counts == "3 False True"


def test_training_continues_without_preemption_notices() -> None:
    notice, counts = listen("raise ConnectionError('the actor died')")
    assert notice == "preemption notices are no longer received: the actor died"
    assert counts == "1 False False"

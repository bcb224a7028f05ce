"""What is heard of a node that goes. In processes of their own, as a notice stays for life."""

import subprocess
import sys

import pytest

LISTEN = """
from workers.train.notice import listen_for_notice, notice_given

questions = []

def ask():
    questions.append(notice_given())
    {answer}

assert not notice_given()
listen_for_notice(ask, seconds=0.001).join()
print(len(questions), any(questions), notice_given())
"""


def listen(answer: str) -> list[str]:
    """The lines that a process prints whose question is answered by this."""
    program = LISTEN.format(answer=answer)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_notice_is_given_once_somebody_answers() -> None:
    told, counts = listen("return 'node-7' if len(questions) == 3 else None")
    assert told == "a node is about to go: node-7"
    assert counts == "3 False True"


def test_training_goes_on_where_nobody_can_be_asked() -> None:
    told, counts = listen("raise ConnectionError('the actor died')")
    assert told == "notices are no longer heard of: the actor died"
    assert counts == "1 False False"


@pytest.mark.parametrize("module", ["torch", "ray"])
def test_hook_is_light(module: str) -> None:
    program = f"import sys, workers.train.notice; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

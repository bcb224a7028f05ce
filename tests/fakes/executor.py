"""An executor whose threads may be gone."""

from concurrent.futures import ThreadPoolExecutor


class ScarceThreads(ThreadPoolExecutor):
    """While `are_gone` what is submitted stays in the queue and raises, as with any executor."""

    are_gone = False

    def _adjust_thread_count(self) -> None:
        if self.are_gone:
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()

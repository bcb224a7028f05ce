"""An executor that may be unable to start threads."""

from concurrent.futures import ThreadPoolExecutor


class ScarceThreads(ThreadPoolExecutor):
    """While `are_gone`, a submitted call stays in the queue and `submit` raises, as with any executor."""

    are_gone = False

    def _adjust_thread_count(self) -> None:
        if self.are_gone:
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()

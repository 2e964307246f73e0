class _Lib:
    @staticmethod
    def kl_enter_netns(fd: int) -> int: ...

lib: _Lib

from collections.abc import Sequence

def table(names: Sequence[bytes], weights: Sequence[int], size: int) -> list[int]:
    """Index of a name in each of `size` slots.

    Names take turns in choosing the slot that they prefer most among the free ones, a name of twice the weight twice as
    often, so that each has its share of the slots but for a few. `size` must be a prime, or a name's preferences would
    not reach every slot; it is to be well above the number of names. Raises ValueError for no names, for weights that
    are not one a name and positive, and for a size below 2.
    """

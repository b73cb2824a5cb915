"""smcjax's filters; its resamplers are BlackJAX's."""

import filters
import smcjax
from rows import Block


def blocks() -> list[Block]:
    return filters.blocks(smcjax, threshold=0.9)

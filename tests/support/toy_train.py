"""``fastseg.train`` for processes that have to know the toy method and the toy model first."""

import sys

from fastseg import train
from tests.support import toy_backbone, toy_method

assert {toy_backbone.NAME, toy_method.NAME}  # their import registers them

if __name__ == "__main__":
    sys.exit(train.main())

"""``python -m hecate`` is ``hecate``; under torchrun, ``torchrun ... -m hecate train CONFIG``."""

import sys

from hecate.cli import main

sys.exit(main())
